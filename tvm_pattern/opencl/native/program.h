// Modules of the kind `opencl`: source text and the arguments of its kernels, as TVM writes them into
// a library. A kernel is built when it is called first, for the device that is then current.
#ifndef TVM_PATTERN_PROGRAM_H_
#define TVM_PATTERN_PROGRAM_H_

#include <tvm/ffi/cast.h>
#include <tvm/ffi/extra/module.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <tuple>

#include "device.h"

namespace tvm_pattern {

struct KernelInfo {
  std::string name;
  std::vector<DLDataType> arguments;
  std::vector<std::string> launch_tags;
  std::vector<bool> is_texture;  // of each argument; empty where none is
};

// Reads what TVM's code generator wrote, every length checked against what is there.
class Reader {
 public:
  explicit Reader(const ffi::Bytes& bytes)
      : at_(bytes.data()), end_(bytes.data() + bytes.size()) {}

  template <typename T>
  T Number() {
    Need(sizeof(T));
    T value;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  std::string Text() {
    const auto size = Number<uint64_t>();
    Need(size);
    std::string text(at_, size);
    at_ += size;
    return text;
  }
  // Of elements that take at least `least` bytes each, so that a damaged count is not looped over.
  uint64_t Count(size_t least) {
    const auto count = Number<uint64_t>();
    if (count > Left() / least) Fail();
    return count;
  }
  void End() const {
    if (at_ != end_) Fail();
  }

 private:
  uint64_t Left() const { return static_cast<uint64_t>(end_ - at_); }
  void Need(uint64_t size) const {
    if (size > Left()) Fail();
  }
  [[noreturn]] static void Fail() {
    TVM_PATTERN_FAIL() << "the OpenCL part of the library is damaged or of another TVM; "
                                   "export the library again";
    throw;
  }
  const char* at_;
  const char* end_;
};

struct BuiltKernel {
  cl_program program = nullptr;
  cl_kernel kernel = nullptr;
  size_t max_work_group = 0;
};

class OpenCLModule final : public ffi::ModuleObj {
 public:
  explicit OpenCLModule(const ffi::Bytes& bytes) : bytes_(bytes) {
    Reader reader(bytes);
    format_ = reader.Text();
    if (format_ != "cl")
      TVM_PATTERN_FAIL() << "the library's OpenCL part is of the format " << format_
                                  << ", expected source (cl); compile it again";
    for (uint64_t i = 0, n = reader.Count(8); i < n; ++i) {
      const std::string key = reader.Text();
      KernelInfo& info = kernels_[key];
      info.name = reader.Text();
      for (uint64_t j = 0, count = reader.Count(4); j < count; ++j) {
        DLDataType dtype;
        dtype.code = reader.Number<uint8_t>();
        dtype.bits = reader.Number<uint8_t>();
        dtype.lanes = reader.Number<uint16_t>();
        info.arguments.push_back(dtype);
      }
      for (uint64_t j = 0, count = reader.Count(8); j < count; ++j)
        info.launch_tags.push_back(reader.Text());
      for (uint64_t j = 0, count = reader.Count(4); j < count; ++j) reader.Number<int32_t>();
    }
    source_ = reader.Text();
    reader.End();
    for (auto& [key, info] : kernels_) info.is_texture = Textures(SourceOf(info.name), info);
  }

  ~OpenCLModule() {
    for (auto& [key, built] : built_) {
      if (built.kernel != nullptr) Api().clReleaseKernel(built.kernel);
      if (built.program != nullptr) Api().clReleaseProgram(built.program);
    }
  }

  const char* kind() const final { return "opencl"; }
  int GetPropertyMask() const final {
    return ffi::Module::kBinarySerializable | ffi::Module::kRunnable;
  }
  ffi::Bytes SaveToBytes() const final { return bytes_; }
  ffi::String InspectSource(const ffi::String&) const final { return source_; }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    const auto it = kernels_.find(std::string(name));
    if (it == kernels_.end()) return std::nullopt;
    auto self = ffi::GetObjectPtr<ffi::Object>(this);
    const KernelInfo* info = &it->second;
    return ffi::Function([self, this, info](ffi::PackedArgs args, ffi::Any*) {
      Launch(*info, args);
    });
  }

 private:
  void Launch(const KernelInfo& info, const ffi::PackedArgs& args) {
    const int index = CurrentDevice();
    OpenCLDevice& device = OpenCLDeviceAPI::Global()->At(index);
    const size_t count = info.arguments.size();
    size_t groups[3] = {1, 1, 1}, local[3] = {1, 1, 1}, global[3];
    for (size_t i = 0; i < info.launch_tags.size(); ++i)
      ReadLaunch(info, info.launch_tags[i], args[count + i].cast<int64_t>(), groups, local);
    for (int i = 0; i < 3; ++i) global[i] = groups[i] * local[i];
    // A kernel holds its arguments until it is launched: one thread at a time.
    std::lock_guard<std::mutex> guard(lock_);
    const bool images = HasImages(info, args, device);
    const BuiltKernel& built = Build(info, index, device, images);
    const size_t items = local[0] * local[1] * local[2];
    if (items > built.max_work_group)
      TVM_PATTERN_FAIL()
          << "the kernel " << info.name << " wants work-groups of " << items << " work-items ("
          << local[0] << "x" << local[1] << "x" << local[2] << "), " << device.Name()
          << " allows " << built.max_work_group
          << " of it; compile with a smaller max_num_threads in the target";
    for (size_t i = 0; i < count; ++i) SetArgument(info, built, i, args, images);
    TVM_PATTERN_CHECK_ON(
        device,
        Api().clEnqueueNDRangeKernel(device.queue, built.kernel, 3, nullptr, global, local, 0,
                                     nullptr, nullptr),
        "launching the kernel " << info.name << " on " << device.Name() << " (work-groups of "
                                << local[0] << "x" << local[1] << "x" << local[2] << ", buffers of "
                                << Sizes(info, args) << " bytes)");
  }

  // Of the buffers among a kernel's arguments, in their order.
  static std::string Sizes(const KernelInfo& info, const ffi::PackedArgs& args) {
    std::string text;
    for (size_t i = 0; i < info.arguments.size(); ++i) {
      if (info.arguments[i].code != kDLOpaqueHandle) continue;
      const auto* buffer = static_cast<Buffer*>(args[i].cast<void*>());
      text += (text.empty() ? "" : ", ") + std::to_string(buffer->size);
    }
    return text;
  }

  static void ReadLaunch(const KernelInfo& info, const std::string& tag, int64_t value,
                         size_t* groups, size_t* local) {
    const bool is_group = tag.rfind("blockIdx.", 0) == 0;
    const bool is_item = tag.rfind("threadIdx.", 0) == 0;
    const int axis = tag.empty() ? -1 : tag.back() - 'x';
    if ((!is_group && !is_item) || axis < 0 || axis > 2)
      TVM_PATTERN_FAIL() << "the kernel " << info.name << " has the launch parameter "
                                  << tag << ", which this runtime does not know";
    (is_group ? groups : local)[axis] = static_cast<size_t>(value);
  }

  static void SetArgument(const KernelInfo& info, const BuiltKernel& built, size_t i,
                          const ffi::PackedArgs& args, bool images) {
    const DLDataType dtype = info.arguments[i];
    cl_int code = CL_SUCCESS;
    const auto number = static_cast<cl_uint>(i);
    if (dtype.code == kDLOpaqueHandle) {
      const auto* buffer = static_cast<Buffer*>(args[i].cast<void*>());
      cl_mem memory = images && info.is_texture[i] ? buffer->image : buffer->memory;
      code = Api().clSetKernelArg(built.kernel, number, sizeof memory, &memory);
    } else if (dtype.code == kDLFloat && (dtype.bits == 32 || dtype.bits == 64)) {
      const double wide = args[i].cast<double>();
      const auto narrow = static_cast<float>(wide);
      code = dtype.bits == 64 ? Api().clSetKernelArg(built.kernel, number, 8, &wide)
                              : Api().clSetKernelArg(built.kernel, number, 4, &narrow);
    } else if (dtype.code == kDLInt || dtype.code == kDLUInt) {
      const int64_t value = args[i].cast<int64_t>();  // little-endian: its first bytes are narrow
      code = Api().clSetKernelArg(built.kernel, number, (dtype.bits + 7) / 8, &value);
    } else {
      TVM_PATTERN_FAIL() << "the kernel " << info.name << " takes a scalar of "
                                  << static_cast<int>(dtype.bits)
                                  << " bits that this runtime cannot pass; pass it as a tensor";
    }
    TVM_PATTERN_CHECK(code, "passing argument " << i << " of the kernel " << info.name);
  }

  // Its own part of the source: TVM writes each kernel after a line with its name, and whole.
  std::string SourceOf(const std::string& name) const {
    const std::string mark = "// Function: ";
    const size_t first = source_.find(mark);
    const size_t start = source_.find(mark + name + "\n");
    if (start == std::string::npos) return source_;
    const size_t next = source_.find(mark, start + mark.size());
    return source_.substr(0, first) + source_.substr(start, next - start);
  }

  // Which parameters a program declares as textures; it has a line that names them.
  static std::vector<bool> Textures(const std::string& source, const KernelInfo& info) {
    const size_t start = source.find("__kernel void " + info.name + "(");
    if (source.find("// Textures: ") == std::string::npos || start == std::string::npos) return {};
    std::vector<bool> found;
    size_t at = source.find('(', start) + 1, begin = at;
    for (int depth = 0; at < source.size() && depth >= 0; ++at) {
      if (source[at] == '(') ++depth;
      if (source[at] == ')') --depth;
      if ((source[at] == ',' && depth == 0) || depth < 0) {
        const size_t texture = source.find("texture_of(", begin);
        found.push_back(texture < at);
        begin = at + 1;
      }
    }
    found.resize(info.arguments.size());
    return found;
  }

  // Whether all textures of a launch can be images; else the kernel reads buffers.
  static bool HasImages(const KernelInfo& info, const ffi::PackedArgs& args,
                        OpenCLDevice& device) {
    if (info.is_texture.empty()) return false;
    for (size_t i = 0; i < info.is_texture.size(); ++i)
      if (info.is_texture[i] &&
          device.ImageOf(static_cast<Buffer*>(args[i].cast<void*>())) == nullptr)
        return false;
    return true;
  }

  const BuiltKernel& Build(const KernelInfo& info, int index, const OpenCLDevice& device,
                           bool images) {
    BuiltKernel& built = built_[{info.name, index, images}];
    if (built.kernel != nullptr) return built;
    if (!info.is_texture.empty() && !images)
      std::fprintf(stderr, "tvm-pattern: %s gives no images of that size; %s reads buffers\n",
                   device.Name().c_str(), info.name.c_str());
    const OpenCL& cl = Api();
    std::string source = SourceOf(info.name);
    if (source.find("cl_khr_fp16") != std::string::npos && !device.HasExtension("cl_khr_fp16")) {
      const auto emulate = ffi::Function::GetGlobal("tvm_pattern.opencl.without_half");
      if (!emulate.has_value())
        TVM_PATTERN_FAIL() << "the kernel " << info.name << " computes in float16, which "
                                  << device.Name()
                                  << " lacks (cl_khr_fp16); compile the model in float32, or emulate the"
                                     " type (tvm_pattern.opencl.emulated_float16)";
      source = (*emulate)(source).cast<ffi::String>();
    }
    const char* text = source.data();
    const size_t size = source.size();
    cl_int code = CL_SUCCESS;
    cl_program program = cl.clCreateProgramWithSource(device.context, 1, &text, &size, &code);
    TVM_PATTERN_CHECK(code, "reading the kernel " << info.name);
    code = cl.clBuildProgram(program, 1, &device.id, images ? "-DTVM_PATTERN_IMAGES" : "",
                             nullptr, nullptr);
    cl_kernel kernel = nullptr;
    if (code == CL_SUCCESS) kernel = cl.clCreateKernel(program, info.name.c_str(), &code);
    if (code != CL_SUCCESS) {
      const std::string log = BuildLog(program, device);
      cl.clReleaseProgram(program);
      TVM_PATTERN_FAIL() << "the kernel " << info.name << " does not build for "
                                  << device.Name() << " (" << ErrorName(code) << "): " << log;
    }
    cl.clGetKernelWorkGroupInfo(kernel, device.id, CL_KERNEL_WORK_GROUP_SIZE,
                                sizeof built.max_work_group, &built.max_work_group, nullptr);
    built.program = program;
    built.kernel = kernel;
    return built;
  }

  static std::string BuildLog(cl_program program, const OpenCLDevice& device) {
    size_t size = 0;
    const OpenCL& cl = Api();
    if (cl.clGetProgramBuildInfo(program, device.id, CL_PROGRAM_BUILD_LOG, 0, nullptr, &size) !=
            CL_SUCCESS ||
        size == 0)
      return "the driver gives no log";
    std::string log(size, '\0');
    cl.clGetProgramBuildInfo(program, device.id, CL_PROGRAM_BUILD_LOG, size, &log[0], nullptr);
    return log.c_str();
  }

  ffi::Bytes bytes_;
  std::string format_, source_;
  std::map<std::string, KernelInfo> kernels_;
  std::mutex lock_;
  std::map<std::tuple<std::string, int, bool>, BuiltKernel> built_;
};

}  // namespace tvm_pattern

#endif  // TVM_PATTERN_PROGRAM_H_
