#!/usr/bin/env bash
# Makes a slim arm64 Debian root with Python, numpy and TVM's aarch64 wheel, to run TVM's RPC server
# under qemu-user. No debootstrap, chroot, binfmt_misc or root rights: packages are downloaded by
# apt into folders of their own and unpacked.
#
#   make_root.sh ROOT PYTHON     PYTHON: an interpreter with pip, whose TVM versions are taken
set -euo pipefail
root=${1:?usage: make_root.sh ROOT PYTHON}
python=${2:?usage: make_root.sh ROOT PYTHON}
export LC_ALL=C

for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || { echo "error: $tool is needed; this works on Debian and Ubuntu" >&2; exit 1; }
done

mkdir -p "$root"
root=$(readlink -f "$root")
apt=$root.apt
mkdir -p "$apt"/state/lists/partial "$apt"/cache/archives/partial
: > "$apt/state/status"
options=(-o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$apt/state"
  -o Dir::State::status="$apt/state/status" -o Dir::Cache="$apt/cache"
  -o Debug::NoLocking=1 -o APT::Install-Recommends=false -o APT::Sandbox::User=)
apt-get "${options[@]}" update -qq
# The interpreter's version decides which wheels fit.
version=$(apt-cache "${options[@]}" depends python3-minimal | sed -n 's/.*Depends: python\(3\.[0-9]*\)-minimal.*/\1/p' | head -n 1)
apt-get "${options[@]}" -y -qq -d install "python$version-minimal" "libpython$version-stdlib" \
  libc6 libstdc++6 libgcc-s1 zlib1g libffi8 libssl3 libexpat1 liblzma5 libbz2-1.0 libgomp1 >/dev/null
for package in "$apt"/cache/archives/*.deb; do
  dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" \
    --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale
done

pinned=$("$python" -m pip freeze | grep -E '^(apache-tvm|apache-tvm-ffi|cloudpickle|ml_dtypes|typing_extensions|psutil)==')
site=$root/opt/site
"$python" -m pip install --quiet --no-deps --target "$site" --python-version "$version" \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 --only-binary :all: \
  $pinned 'numpy<2.4'
# Only the runtime is needed to serve.
rm -f "$site"/tvm/lib/libtvm_compiler.so "$site"/tvm/lib/libtvm_runtime_cuda.so
rm -rf "$apt" "$site"/numpy/tests
cat > "$site/sitecustomize.py" <<'PY'
# TVM's server starts a worker by sys.executable, which must be the wrapper around the emulator.
import os
import sys

if os.environ.get("ARM_PYTHON"):
    sys.executable = os.environ["ARM_PYTHON"]
PY
cat > "$root/arm-python" <<SH
#!/bin/sh
export ARM_PYTHON="$root/arm-python" PYTHONPATH="$root/opt/site" TVM_USE_RUNTIME_LIB=1
exec qemu-aarch64 -L "$root" "$root/usr/bin/python$version" "\$@"
SH
chmod +x "$root/arm-python"
"$root/arm-python" -c 'import numpy, tvm; print("arm64 root: TVM", tvm.__version__)'
touch "$root/.complete"
