// OpenCL for the runtime of TVM's wheel, which has none: devices, modules and a timer under the names
// by which TVM looks for them. Loading it touches no driver.
#include <tvm/ffi/reflection/registry.h>

#include "program.h"

namespace tvm_pattern {
namespace {

ffi::Module LoadModule(const ffi::Bytes& bytes) {
  return ffi::Module(ffi::make_object<OpenCLModule>(bytes));
}

// Has TVM an OpenCL runtime already, whose devices ours must not replace?
bool IsFree() { return !ffi::Function::GetGlobal("device_api.opencl").has_value(); }

TVM_FFI_STATIC_INIT_BLOCK() {
  if (!IsFree()) return;
  tvm::ffi::reflection::GlobalDef()
      .def_packed("device_api.opencl",
                  [](ffi::PackedArgs, ffi::Any* result) {
                    *result = static_cast<void*>(
                        static_cast<tvm::runtime::DeviceAPI*>(OpenCLDeviceAPI::Global()));
                  })
      .def("ffi.Module.load_from_bytes.opencl", LoadModule)
      .def("runtime.timer.opencl",
           [](Device device) {
             auto timer = ffi::make_object<OpenCLTimer>(device);
             timer->Start();
             return tvm::runtime::Timer(timer);
           })
      .def("tvm_pattern.opencl.count",
           []() { return static_cast<int64_t>(OpenCLDeviceAPI::Global()->Count()); })
      .def("tvm_pattern.opencl.problem", []() { return ffi::String(Api().problem); })
      .def("tvm_pattern.opencl.images",
           [](int64_t index) {
             return OpenCLDeviceAPI::Global()->At(static_cast<int>(index)).images.load();
           })
      .def("tvm_pattern.opencl.describe", [](int64_t index) {
        return ffi::String(OpenCLDeviceAPI::Global()->Describe(static_cast<int>(index)));
      });
}

}  // namespace
}  // namespace tvm_pattern
