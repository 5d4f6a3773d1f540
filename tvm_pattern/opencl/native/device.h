// OpenCL devices for TVM's runtime: found once, in the process that uses them first.
#ifndef TVM_PATTERN_DEVICE_H_
#define TVM_PATTERN_DEVICE_H_

#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/runtime/device_api.h>
// timer.h includes tensor.h without need, and the wheel lacks what tensor.h includes.
#define TVM_RUNTIME_TENSOR_H_
#include <tvm/runtime/timer.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "opencl_api.h"

namespace tvm_pattern {

namespace ffi = tvm::ffi;
using tvm::Device;
using tvm::runtime::DeviceAttrKind;

// A word for the errors that a user can do something about, the number for the others.
inline std::string ErrorName(cl_int code) {
  switch (code) {
    case CL_MEM_OBJECT_ALLOCATION_FAILURE:
      return "CL_MEM_OBJECT_ALLOCATION_FAILURE: out of device memory";
    case CL_OUT_OF_RESOURCES:
      return "CL_OUT_OF_RESOURCES: a kernel failed or wanted more than the device has";
    case CL_OUT_OF_HOST_MEMORY:
      return "CL_OUT_OF_HOST_MEMORY";
    case CL_INVALID_BUFFER_SIZE:
      return "CL_INVALID_BUFFER_SIZE: out of device memory";
    default:
      return "OpenCL error " + std::to_string(code);
  }
}

// Whether a code may mean that memory is short; the standard leaves to drivers which they give.
inline bool IsMemory(cl_int code) {
  return code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_RESOURCES ||
         code == CL_OUT_OF_HOST_MEMORY || code == CL_INVALID_BUFFER_SIZE;
}

// Every message begins alike, so that it is found in what TVM or RPC wrap around it.
#define TVM_PATTERN_FAIL() TVM_FFI_THROW(RuntimeError) << "OpenCL: "

#define TVM_PATTERN_CHECK(CALL, DOING)                                                       \
  do {                                                                                       \
    const cl_int code_ = (CALL);                                                             \
    if (code_ != CL_SUCCESS)                                                                 \
      TVM_PATTERN_FAIL() << "failed while " << DOING << ": "                                 \
                         << ::tvm_pattern::ErrorName(code_);                                 \
  } while (0)

// The same for a command of a device, with what its memory holds where that may be the cause.
#define TVM_PATTERN_CHECK_ON(DEVICE, CALL, DOING)                                            \
  do {                                                                                       \
    const cl_int code_ = (CALL);                                                             \
    if (code_ != CL_SUCCESS)                                                                 \
      TVM_PATTERN_FAIL() << "failed while " << DOING << ": "                                 \
                         << ::tvm_pattern::ErrorName(code_) << (DEVICE).Advice(code_);       \
  } while (0)

// What a tensor's data pointer on these devices points to.
struct Buffer {
  cl_mem memory;
  size_t size;
  cl_mem image = nullptr;  // of the same memory, made when a kernel first reads it as a texture
  bool has_asked = false;  // for the image: a device that has none is not asked at each launch
};

constexpr size_t kTexelBytes = 16;  // as kernels with textures expect

struct OpenCLDevice {
  cl_device_id id = nullptr;
  cl_context context = nullptr;
  cl_command_queue queue = nullptr;
  bool has_clock = false;  // whether the queue's events hold times
  std::string platform;
  // Buffers of AllocWorkspace that are free; commands run in order, so they are reused at once.
  std::mutex workspace_lock;
  std::vector<Buffer*> workspaces;
  std::mutex image_lock;
  std::atomic<int64_t> images{0};     // that were made
  std::atomic<uint64_t> buffers{0}, held{0};  // of this process, free workspaces among them; bytes

  template <typename T>
  T Number(cl_uint what) const {
    T value = 0;
    Api().clGetDeviceInfo(id, what, sizeof value, &value, nullptr);
    return value;
  }
  std::string Text(cl_uint what) const {
    size_t size = 0;
    if (Api().clGetDeviceInfo(id, what, 0, nullptr, &size) != CL_SUCCESS || size == 0) return "";
    std::string text(size, '\0');
    Api().clGetDeviceInfo(id, what, size, &text[0], nullptr);
    return text.c_str();
  }
  bool HasExtension(const std::string& name) const {
    return (" " + Text(CL_DEVICE_EXTENSIONS) + " ").find(" " + name + " ") != std::string::npos;
  }
  std::string Name() const { return Text(CL_DEVICE_NAME); }

  // After an error that may mean that memory is short: what is there, and what to do. A driver may
  // hand out buffers that it has no memory for, and find out when a kernel first uses them.
  std::string Advice(cl_int code) const {
    if (!IsMemory(code)) return "";
    return ". " + Name() + " holds " + std::to_string(Number<cl_ulong>(CL_DEVICE_GLOBAL_MEM_SIZE)) +
           " bytes, at most " + std::to_string(Number<cl_ulong>(CL_DEVICE_MAX_MEM_ALLOC_SIZE)) +
           " in one buffer; this process has " + std::to_string(held.load()) + " bytes in " +
           std::to_string(buffers.load()) +
           " buffers there. Use a smaller batch, float16 or a smaller network, or free other "
           "tensors and libraries";
  }

  // Null where the device has no memory; what waits for reuse is given up first.
  Buffer* Allocate(size_t size, cl_int* code) {
    const size_t bytes = std::max<size_t>(size, 1);
    cl_mem memory = Api().clCreateBuffer(context, CL_MEM_READ_WRITE, bytes, nullptr, code);
    if (IsMemory(*code) && FreeWorkspaces())
      memory = Api().clCreateBuffer(context, CL_MEM_READ_WRITE, bytes, nullptr, code);
    if (*code != CL_SUCCESS) return nullptr;
    ++buffers;
    held += size;
    return new Buffer{memory, size};
  }

  void Free(Buffer* buffer) {
    // The driver keeps the memory until the commands that use it have run.
    if (buffer->image != nullptr) Api().clReleaseMemObject(buffer->image);
    Api().clReleaseMemObject(buffer->memory);
    --buffers;
    held -= buffer->size;
    delete buffer;
  }

  // Whether there were any.
  bool FreeWorkspaces() {
    std::vector<Buffer*> unused;
    {
      std::lock_guard<std::mutex> guard(workspace_lock);
      unused.swap(workspaces);
    }
    if (unused.empty()) return false;
    for (Buffer* buffer : unused) Free(buffer);
    Api().clFinish(queue);
    return true;
  }

  // The image of a buffer's memory, or null where the device has none of that size.
  cl_mem ImageOf(Buffer* buffer) {
    std::lock_guard<std::mutex> guard(image_lock);
    if (buffer->has_asked) return buffer->image;
    buffer->has_asked = true;
    const size_t texels = buffer->size / kTexelBytes;
    const char* wanted = std::getenv("PATTERN_OPENCL_IMAGES");  // 0: buffers, to compare
    const bool fits = Number<cl_bool>(CL_DEVICE_IMAGE_SUPPORT) != 0 && texels > 0 &&
                      texels <= Number<size_t>(CL_DEVICE_IMAGE_MAX_BUFFER_SIZE) &&
                      (wanted == nullptr || std::string(wanted) != "0");
    if (fits) {
      const cl_image_format format{CL_RGBA, CL_UNSIGNED_INT32};
      cl_image_desc desc{};
      desc.type = CL_MEM_OBJECT_IMAGE1D_BUFFER;
      desc.width = texels;
      desc.buffer = buffer->memory;
      cl_int code = CL_SUCCESS;
      cl_mem image =
          Api().clCreateImage(context, CL_MEM_READ_ONLY, &format, &desc, nullptr, &code);
      if (code == CL_SUCCESS) {
        buffer->image = image;
        ++images;
      }
    }
    return buffer->image;
  }
};

// The device that host code has chosen last in this thread (TVM's __tvm_set_device).
inline int& CurrentDevice() {
  static thread_local int device = 0;
  return device;
}

class OpenCLDeviceAPI final : public tvm::runtime::DeviceAPI {
 public:
  static OpenCLDeviceAPI* Global() {
    static auto* api = new OpenCLDeviceAPI();  // used by destructors at exit: never freed
    return api;
  }

  int Count() {
    Find();
    return IsChild() ? 0 : static_cast<int>(devices_.size());
  }

  OpenCLDevice& At(int index) {
    Find();
    if (IsChild())
      TVM_PATTERN_FAIL()
          << "it was used before this process was forked, and drivers do not survive that; "
             "use OpenCL first in the child, or start it by `spawn`";
    if (index < 0 || index >= static_cast<int>(devices_.size()))
      TVM_PATTERN_FAIL() << "there is no OpenCL device " << index << ": found "
                                  << devices_.size()
                                  << (Api().problem.empty() ? "" : " (" + Api().problem + ")");
    return *devices_[index];
  }

  void SetDevice(Device device) final { CurrentDevice() = device.device_id; }

  void GetAttr(Device device, DeviceAttrKind kind, ffi::Any* result) final {
    const bool exists = device.device_id >= 0 && device.device_id < Count();
    if (kind == tvm::runtime::kExist) {
      *result = static_cast<int64_t>(exists);
      return;
    }
    if (!exists) return;
    const OpenCLDevice& d = *devices_[device.device_id];
    switch (kind) {
      case tvm::runtime::kMaxThreadsPerBlock:
        *result = static_cast<int64_t>(d.Number<size_t>(CL_DEVICE_MAX_WORK_GROUP_SIZE));
        break;
      case tvm::runtime::kWarpSize:
        *result = static_cast<int64_t>(1);  // as TVM's own runtime answers: the width is unknown
        break;
      case tvm::runtime::kMaxSharedMemoryPerBlock:
        *result = static_cast<int64_t>(d.Number<cl_ulong>(CL_DEVICE_LOCAL_MEM_SIZE));
        break;
      case tvm::runtime::kComputeVersion:
        *result = ffi::String(d.Text(CL_DEVICE_VERSION));
        break;
      case tvm::runtime::kDeviceName:
        *result = ffi::String(d.Name());
        break;
      case tvm::runtime::kMaxClockRate:
        *result = static_cast<int64_t>(d.Number<cl_uint>(CL_DEVICE_MAX_CLOCK_FREQUENCY));
        break;
      case tvm::runtime::kMultiProcessorCount:
        *result = static_cast<int64_t>(d.Number<cl_uint>(CL_DEVICE_MAX_COMPUTE_UNITS));
        break;
      case tvm::runtime::kMaxThreadDimensions:
        *result = ffi::String(WorkItemSizes(d));
        break;
      case tvm::runtime::kDriverVersion:
        *result = ffi::String(d.Text(CL_DRIVER_VERSION));
        break;
      case tvm::runtime::kL2CacheSizeBytes:
        *result = static_cast<int64_t>(d.Number<cl_ulong>(CL_DEVICE_GLOBAL_MEM_CACHE_SIZE));
        break;
      case tvm::runtime::kTotalGlobalMemory:
        *result = static_cast<int64_t>(d.Number<cl_ulong>(CL_DEVICE_GLOBAL_MEM_SIZE));
        break;
      default:
        break;  // not known to OpenCL: None
    }
  }

  void* AllocDataSpace(Device device, size_t size, size_t, DLDataType) final {
    OpenCLDevice& d = At(device.device_id);
    cl_int code = CL_SUCCESS;
    Buffer* buffer = d.Allocate(size, &code);
    if (buffer == nullptr)
      TVM_PATTERN_FAIL() << d.Name() << " has no buffer of " << size << " bytes ("
                         << ErrorName(code) << ")" << d.Advice(code);
    return buffer;
  }

  void* AllocDataSpace(Device device, int ndim, const int64_t* shape, DLDataType dtype,
                       ffi::Optional<ffi::String> scope) final {
    if (scope.has_value() && scope.value() != "" && scope.value() != "global")
      TVM_PATTERN_FAIL() << "memory of the scope " << scope.value()
                                  << " is not supported by this runtime, which has buffers and "
                                     "images of them; compile without tensors in textures";
    size_t size = (static_cast<size_t>(dtype.bits) * dtype.lanes + 7) / 8;
    for (int i = 0; i < ndim; ++i) size *= static_cast<size_t>(shape[i]);
    return AllocDataSpace(device, size, tvm::runtime::kAllocAlignment, dtype);
  }

  void FreeDataSpace(Device device, void* pointer) final {
    auto* buffer = static_cast<Buffer*>(pointer);
    if (IsChild())
      delete buffer;  // the driver's part belongs to the parent
    else
      At(device.device_id).Free(buffer);
  }

  void* AllocWorkspace(Device device, size_t size, DLDataType dtype) final {
    OpenCLDevice& d = At(device.device_id);
    {
      std::lock_guard<std::mutex> guard(d.workspace_lock);
      auto best = d.workspaces.end();
      for (auto it = d.workspaces.begin(); it != d.workspaces.end(); ++it)
        if ((*it)->size >= size && (best == d.workspaces.end() || (*it)->size < (*best)->size))
          best = it;
      if (best != d.workspaces.end()) {
        Buffer* found = *best;
        d.workspaces.erase(best);
        return found;
      }
    }
    return AllocDataSpace(device, size, tvm::runtime::kTempAllocaAlignment, dtype);
  }

  void FreeWorkspace(Device device, void* pointer) final {
    if (IsChild()) return;
    OpenCLDevice& d = At(device.device_id);
    std::lock_guard<std::mutex> guard(d.workspace_lock);
    d.workspaces.push_back(static_cast<Buffer*>(pointer));
  }

  void StreamSync(Device device, TVMStreamHandle) final {
    OpenCLDevice& d = At(device.device_id);
    TVM_PATTERN_CHECK_ON(d, Api().clFinish(d.queue), "waiting for the device");
  }

  // Facts as JSON, which crosses RPC too.
  std::string Describe(int index) {
    const OpenCLDevice& d = At(index);
    const auto type = d.Number<cl_bitfield>(CL_DEVICE_TYPE);
    const bool images = d.Number<cl_bool>(CL_DEVICE_IMAGE_SUPPORT) != 0;
    std::string text = "{";
    Field(&text, "name", Quoted(d.Name()));
    Field(&text, "vendor", Quoted(d.Text(CL_DEVICE_VENDOR)));
    Field(&text, "platform", Quoted(d.platform));
    Field(&text, "version", Quoted(d.Text(CL_DEVICE_VERSION)));
    Field(&text, "driver", Quoted(d.Text(CL_DRIVER_VERSION)));
    Field(&text, "kind", type & CL_DEVICE_TYPE_GPU   ? "\"gpu\""
                         : type & CL_DEVICE_TYPE_CPU ? "\"cpu\""
                                                     : "\"accelerator\"");
    Field(&text, "float16", d.HasExtension("cl_khr_fp16") ? "true" : "false");
    Field(&text, "images", images ? "true" : "false");
    Field(&text, "image_width", Integer(d.Number<size_t>(CL_DEVICE_IMAGE2D_MAX_WIDTH)));
    Field(&text, "image_height", Integer(d.Number<size_t>(CL_DEVICE_IMAGE2D_MAX_HEIGHT)));
    const auto texels = images ? d.Number<size_t>(CL_DEVICE_IMAGE_MAX_BUFFER_SIZE) : 0;
    Field(&text, "image_texels", Integer(texels));
    Field(&text, "compute_units", Integer(d.Number<cl_uint>(CL_DEVICE_MAX_COMPUTE_UNITS)));
    Field(&text, "clock_mhz", Integer(d.Number<cl_uint>(CL_DEVICE_MAX_CLOCK_FREQUENCY)));
    Field(&text, "max_work_group", Integer(d.Number<size_t>(CL_DEVICE_MAX_WORK_GROUP_SIZE)));
    Field(&text, "max_work_items", WorkItemSizes(d));
    const bool local = d.Number<cl_uint>(CL_DEVICE_LOCAL_MEM_TYPE) == CL_LOCAL;
    Field(&text, "local_memory_kind", local ? "\"local\"" : "\"global\"");
    Field(&text, "local_memory", Integer(d.Number<cl_ulong>(CL_DEVICE_LOCAL_MEM_SIZE)));
    Field(&text, "global_memory", Integer(d.Number<cl_ulong>(CL_DEVICE_GLOBAL_MEM_SIZE)));
    Field(&text, "max_buffer", Integer(d.Number<cl_ulong>(CL_DEVICE_MAX_MEM_ALLOC_SIZE)));
    return text + "}";
  }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset,
                      size_t size, Device from_device, Device to_device, DLDataType dtype,
                      TVMStreamHandle stream) final {
    if (size == 0) return;
    const bool is_read = from_device.device_type == kDLOpenCL;
    const bool is_write = to_device.device_type == kDLOpenCL;
    if (is_read && is_write && from_device.device_id == to_device.device_id) {
      auto& d = At(to_device.device_id);
      TVM_PATTERN_CHECK_ON(
          d, Api().clEnqueueCopyBuffer(d.queue, Memory(from), Memory(to), from_offset, to_offset,
                                    size, 0, nullptr, nullptr),
          "copying " << size << " bytes on the device");
    } else if (is_read && is_write) {
      // Two contexts share nothing: by way of the host.
      std::vector<char> host(size);
      const Device cpu{kDLCPU, 0};
      CopyDataFromTo(from, from_offset, host.data(), 0, size, from_device, cpu, dtype, stream);
      CopyDataFromTo(host.data(), 0, to, to_offset, size, cpu, to_device, dtype, stream);
    } else if (is_read) {
      auto& d = At(from_device.device_id);
      TVM_PATTERN_CHECK_ON(
          d, Api().clEnqueueReadBuffer(d.queue, Memory(from), CL_TRUE, from_offset, size,
                                    static_cast<char*>(to) + to_offset, 0, nullptr, nullptr),
          "reading " << size << " bytes from the device");
    } else {
      auto& d = At(to_device.device_id);
      TVM_PATTERN_CHECK_ON(
          d, Api().clEnqueueWriteBuffer(d.queue, Memory(to), CL_TRUE, to_offset, size,
                                     static_cast<const char*>(from) + from_offset, 0, nullptr,
                                     nullptr),
          "writing " << size << " bytes to the device");
    }
  }

 private:
  static cl_mem Memory(const void* pointer) {
    return static_cast<const Buffer*>(pointer)->memory;
  }

  static std::string Integer(uint64_t value) { return std::to_string(value); }

  static void Field(std::string* text, const char* name, const std::string& value) {
    *text += (text->size() > 1 ? ", \"" : "\"") + std::string(name) + "\": " + value;
  }

  static std::string Quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') result += '\\';
      result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return result + "\"";
  }

  static std::string WorkItemSizes(const OpenCLDevice& d) {
    size_t sizes[16] = {1, 1, 1};  // the standard promises three
    Api().clGetDeviceInfo(d.id, CL_DEVICE_MAX_WORK_ITEM_SIZES, sizeof sizes, sizes, nullptr);
    return "[" + Integer(sizes[0]) + ", " + Integer(sizes[1]) + ", " + Integer(sizes[2]) + "]";
  }

  bool IsChild() const { return process_ != 0 && process_ != getpid(); }

  // Not when the library is loaded: a server that forks must not have touched the driver.
  void Find() {
    std::call_once(found_, [this] {
      if (!Api().problem.empty()) return;
      process_ = getpid();
      cl_uint count = 0;
      if (Api().clGetPlatformIDs(0, nullptr, &count) != CL_SUCCESS || count == 0) return;
      std::vector<cl_platform_id> platforms(count);
      Api().clGetPlatformIDs(count, platforms.data(), nullptr);
      for (const auto type :
           {CL_DEVICE_TYPE_GPU, CL_DEVICE_TYPE_ACCELERATOR, CL_DEVICE_TYPE_CPU})
        for (const auto platform : platforms) AddDevices(platform, type);
    });
  }

  void AddDevices(cl_platform_id platform, cl_bitfield type) {
    const OpenCL& cl = Api();
    cl_uint count = 0;
    if (cl.clGetDeviceIDs(platform, type, 0, nullptr, &count) != CL_SUCCESS || count == 0) return;
    std::vector<cl_device_id> ids(count);
    cl.clGetDeviceIDs(platform, type, count, ids.data(), nullptr);
    char name[256] = {0};
    cl.clGetPlatformInfo(platform, CL_PLATFORM_NAME, sizeof name - 1, name, nullptr);
    for (const auto id : ids) {
      auto device = std::make_unique<OpenCLDevice>();
      device->id = id;
      device->platform = name;
      cl_int code = CL_SUCCESS;
      device->context = cl.clCreateContext(nullptr, 1, &id, nullptr, nullptr, &code);
      if (code != CL_SUCCESS) continue;
      device->queue =
          cl.clCreateCommandQueue(device->context, id, CL_QUEUE_PROFILING_ENABLE, &code);
      device->has_clock = code == CL_SUCCESS;
      if (!device->has_clock)
        device->queue = cl.clCreateCommandQueue(device->context, id, 0, &code);
      if (code == CL_SUCCESS) devices_.push_back(std::move(device));
    }
  }

  std::once_flag found_;
  pid_t process_ = 0;
  std::vector<std::unique_ptr<OpenCLDevice>> devices_;
};

// Time between two markers of the queue by the device's clock; without one, by the host's.
class OpenCLTimer final : public tvm::runtime::TimerNode {
 public:
  explicit OpenCLTimer(Device device) : device_(&OpenCLDeviceAPI::Global()->At(device.device_id)) {}

  void Start() final {
    Finish();  // what was asked for earlier must not run in this time
    started_ = std::chrono::steady_clock::now();
    if (device_->has_clock) Mark(&start_);
  }

  void Stop() final {
    if (device_->has_clock) Mark(&stop_);
    Finish();
    elapsed_ = std::chrono::steady_clock::now() - started_;
  }

  int64_t SyncAndGetElapsedNanos() final {
    const int64_t host = std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed_).count();
    cl_ulong begin = 0, end = 0;
    if (!Time(start_, CL_PROFILING_COMMAND_END, &begin) ||
        !Time(stop_, CL_PROFILING_COMMAND_END, &end) || end < begin)
      return host;
    return static_cast<int64_t>(end - begin);
  }

  ~OpenCLTimer() {
    for (cl_event event : {start_, stop_})
      if (event != nullptr) Api().clReleaseEvent(event);
  }

  static constexpr const bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("tvm_pattern.OpenCLTimer", OpenCLTimer,
                                    tvm::runtime::TimerNode);

 private:
  void Finish() {
    TVM_PATTERN_CHECK_ON(*device_, Api().clFinish(device_->queue), "waiting for the device");
  }
  void Mark(cl_event* event) {
    TVM_PATTERN_CHECK(Api().clEnqueueMarkerWithWaitList(device_->queue, 0, nullptr, event),
                      "marking the time");
  }
  static bool Time(cl_event event, cl_uint what, cl_ulong* value) {
    return event != nullptr && Api().clGetEventProfilingInfo(event, what, sizeof *value, value,
                                                             nullptr) == CL_SUCCESS;
  }

  OpenCLDevice* device_;
  cl_event start_ = nullptr, stop_ = nullptr;
  std::chrono::steady_clock::time_point started_;
  std::chrono::steady_clock::duration elapsed_{};
};

}  // namespace tvm_pattern

#endif  // TVM_PATTERN_DEVICE_H_
