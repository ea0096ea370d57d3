#!/usr/bin/env bash
# The hot-expert cache on a real GPU, on a machine with no network. `gpu.sh help` says how.
set -euo pipefail

usage() {
    cat <<'END'
gpu.sh COMMAND [options]: the hot-expert cache against stock llama.cpp on an NVIDIA GPU

On a machine with network:
  pack       put this project's and llama.cpp's sources into one archive: --out FILE (moetune-gpu.tar.gz)
  prebuild   compile only libggml-cuda.so into --out DIR, for a card named by --cuda-arch (90 for an H100);
             needs nvcc but no GPU, and saves `build` most of its time

On the machine with the GPU (nvcc, CMake, a C++ compiler, Python 3.11 or newer; no network, no packages), after
`tar xf moetune-gpu.tar.gz && cd moetune-gpu`:
  run        all of the following, one after the other
  build      llama.cpp with CUDA for this card, the plugin, and the benchmark's own programs
  model      a random-weight model of the Qwen3-30B-A3B shape (16 GiB) with skewed, drifting routing
  measure    at each budget: all experts in RAM, the best -ncmoe at equal VRAM, the cache
  report     the table, and all raw samples with this machine's description under benchmarks/results/
Every command goes on where it was interrupted and does nothing twice.

Options:
  --work DIR         where everything is built and kept (build/gpu)
  --llama-cpp DIR    llama.cpp's sources (llama.cpp beside benchmarks/; `pack` fetches them)
  --llama-lib DIR    build nothing of llama.cpp: its shared libraries are here
  --prebuilt DIR     do not compile CUDA: libggml-cuda.so from `prebuild` is here
  --device NAME      ggml device (CUDA0). EMU0 rehearses on the emulated accelerator, set up by EMU_* variables,
                     CPU on the processor; neither needs a GPU, and every figure then says that it is emulated
  --jobs N           compile so many files at a time (all processors)
  --budgets A,B,...  GiB of the fast tier (4,8,12); --budget A is the same for one
  --rounds N         fresh processes an arm (3)
  --threads N        of llama.cpp (physical cores)
  --model FILE       use this GGUF instead of generating one
  --model-dir DIR    where to generate it (the work folder; /dev/shm holds it in memory)
  --results DIR      where `report` writes (benchmarks/results)
  Model:   --layers --embd --heads --kv-heads --head-dim --experts --used --ff --vocab --quant q4_0|q4_K
           --topics N --top-share 0..1 (of activations, to the busiest fifth) --drift 0..1 --seed
  Measure: --prompt-tokens --prompts --warmup --tokens --positions (whose logits are compared)
           --stay (tokens before the topic changes)
HOTCACHE_* variables set the cache as docs/stock-llama-cpp.md says; stock never sees them.
END
}

die() {
    echo "gpu.sh: $*" >&2
    exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$root/benchmarks
command=${1:-help}
shift || true

work=$root/build/gpu llama_cpp=$root/llama.cpp llama_lib= prebuilt= device= jobs=$(nproc) budgets=4,8,12
rounds=3 out= cuda_arch=native model= model_dir= results=$here/results
shape=() effort=() threads=()
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || die "$1 needs a value; see gpu.sh help"
    case $1 in
        --work) work=$2 ;;
        --llama-cpp) llama_cpp=$2 ;;
        --llama-lib) llama_lib=$2 ;;
        --prebuilt) prebuilt=$2 ;;
        --device) device=$2 ;;
        --jobs) jobs=$2 ;;
        --budget | --budgets) budgets=$2 ;;
        --rounds) rounds=$2 ;;
        --threads) threads=(--threads "$2") ;;
        --out) out=$2 ;;
        --cuda-arch) cuda_arch=$2 ;;
        --model) model=$2 ;;
        --model-dir) model_dir=$2 ;;
        --results) results=$2 ;;
        --layers | --embd | --heads | --kv-heads | --head-dim | --experts | --used | --ff | --vocab | --quant)
            shape+=("$1" "$2") ;;
        --topics | --top-share | --drift | --seed) shape+=("$1" "$2") ;;
        --prompt-tokens | --prompts | --warmup | --tokens | --positions | --stay) effort+=("$1" "$2") ;;
        *) die "$1: no such option; see gpu.sh help" ;;
    esac
    shift 2
done

# What earlier commands decided holds for later ones.
remember() { mkdir -p "$work" && printf '%s\n' "${@:2}" >"$work/$1.txt"; }
recall() { [ -f "$work/$1.txt" ] && cat "$work/$1.txt"; }
work=$(realpath -m "$work")
device=${device:-$(recall device || echo CUDA0)}

absolute() { (cd "$1" 2>/dev/null && pwd) || die "$1: no such folder"; }

# Configures and builds $1 (a source folder) in $2; then targets; then, after --, options of CMake.
cmake_build() {
    local source=$1 build=$2 targets=()
    shift 2
    while [ "$1" != -- ]; do
        targets+=(--target "$1")
        shift
    done
    shift
    local generator=()
    if command -v ninja >/dev/null; then generator=(-G Ninja); fi
    mkdir -p "$build"
    cmake "${generator[@]}" -S "$source" -B "$build" -DCMAKE_BUILD_TYPE=Release "$@" >"$build/configure.log" 2>&1 ||
        die "CMake could not configure $source: $(tail -n 5 "$build/configure.log")"
    cmake --build "$build" --parallel "$jobs" "${targets[@]}"
}

# Only libllama and what it needs; nothing is fetched, and without the driver's virtual memory API the CUDA part also
# links where no driver is installed.
llama_options=(-DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_APP=OFF -DGGML_CCACHE=OFF)
cuda_options() {
    local cublas
    find_nvcc || die "no nvcc; install the CUDA toolkit, or rehearse with --device EMU0"
    cublas=$(python_cublas)
    options=(-DGGML_CUDA=ON -DGGML_CUDA_NO_VMM=ON -DGGML_CUDA_NCCL=OFF "-DCMAKE_CUDA_ARCHITECTURES=$cuda_arch")
    if [ -n "$cublas" ]; then
        options+=("-DCUDA_cublas_LIBRARY=$(compgen -G "$cublas/lib/libcublas.so.*" | head -n 1)")
        options+=("-DCMAKE_CUDA_FLAGS=-isystem $cublas/include")
    fi
}

find_nvcc() {
    if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then PATH=/usr/local/cuda/bin:$PATH; fi
    command -v nvcc >/dev/null
}

# Where pip has put cuBLAS for PyTorch, if nvcc's own toolkit comes without it; else nothing.
python_cublas() {
    local toolkit=/usr/local/cuda
    if find_nvcc; then toolkit=$(nvcc -x cu /dev/null --dryrun 2>&1 | sed -n 's/^#\$ TOP=//p'); fi
    if ! compgen -G "$toolkit/lib64/libcublas.so" >/dev/null; then
        python3 - <<'END'
import pathlib, sys, sysconfig
for folder in map(pathlib.Path, dict.fromkeys([*sys.path, sysconfig.get_path("purelib")])):
    for found in sorted(folder.glob("nvidia/cu*")) if folder.is_dir() else ():
        if (found / "include/cublas_v2.h").exists() and any(found.glob("lib/libcublas.so.*")):
            print(found)
            sys.exit()
END
    fi
}

check_sources() {
    [ -f "$llama_cpp/ggml/CMakeLists.txt" ] || die "no llama.cpp sources in $llama_cpp; name them with --llama-cpp"
    llama_cpp=$(absolute "$llama_cpp")
}

build() {
    check_sources
    local load=() options=()
    if [ -n "$llama_lib" ]; then
        llama_lib=$(absolute "$llama_lib")
    else
        if [ -n "$prebuilt" ]; then
            load+=("$(absolute "$prebuilt")/libggml-cuda.so")
            [ -f "${load[0]}" ] || die "no libggml-cuda.so in $prebuilt"
        elif [[ $device == CUDA* ]]; then
            cuda_options
        fi
        options+=(-DGGML_NATIVE=ON)
        cmake_build "$llama_cpp" "$work/llama" llama -- "${llama_options[@]}" "${options[@]}"
        llama_lib=$work/llama/bin
    fi
    # CMake keeps the libraries that it found first.
    [ "$(recall llama_lib || true)" = "$llama_lib" ] || rm -rf "$work/plugin" "$work/programs"
    remember llama_lib "$llama_lib"
    cmake_build "$root/engine/native" "$work/plugin" -- \
        "-DGGML_INCLUDE=$llama_cpp/ggml/include" "-DGGML_LIB=$llama_lib"
    cmake_build "$here/gpu" "$work/programs" -- "-DLLAMA_CPP=$llama_cpp" "-DLLAMA_LIB=$llama_lib"
    [[ $device != EMU* ]] || load+=("$work/plugin/libemu_accel.so")
    remember sources "moetune $(project_version), ggml $(ggml_version)"
    remember device "$device"
    remember load "${load[@]}"
}

ggml_version() {
    sed -n 's/^set(GGML_VERSION_\(MAJOR\|MINOR\|PATCH\) \([0-9]*\).*/\2/p' "$llama_cpp/ggml/CMakeLists.txt" | paste -sd.
}

project_version() {
    cat "$root/sources.txt" 2>/dev/null || git -C "$root" describe --always --dirty 2>/dev/null || echo unknown
}

prebuild() {
    check_sources
    [ -n "$out" ] || die "prebuild needs --out DIR"
    [ "$cuda_arch" != native ] || die "prebuild needs --cuda-arch, such as 90 for an H100"
    local options
    cuda_options
    # A module that ggml loads at run time has no say in the processor's own code, which the target machine compiles.
    options+=(-DGGML_NATIVE=OFF -DGGML_CPU=OFF -DGGML_BACKEND_DL=ON)
    cmake_build "$llama_cpp" "$work/cuda" ggml-cuda -- "${llama_options[@]}" "${options[@]}"
    mkdir -p "$out"
    cp "$work/cuda/bin/libggml-cuda.so" "$out/"
    strip "$out/libggml-cuda.so"
    ls -l "$out/libggml-cuda.so"
}

make_model() {
    [ -x "$work/programs/make_model" ] || die "nothing is built in $work; run gpu.sh build"
    local wanted="${shape[*]}" name
    if [ -n "$model" ]; then
        [ -f "$model" ] || die "$model: no such file"
        wanted=$(realpath "$model")
    fi
    if [ ! -f "$work/model.gguf" ] || [ "$(recall model || true)" != "$wanted" ]; then
        rm -rf "$work/model.gguf" "$work/routing.json" "$work/budgets"
        if [ -n "$model" ]; then
            ln -s "$wanted" "$work/model.gguf"
        elif [ -n "$model_dir" ]; then
            mkdir -p "$model_dir"
            ln -s "$(absolute "$model_dir")/model.gguf" "$work/model.gguf"
        fi
        [ -n "$model" ] || "$work/programs/make_model" --out "$(realpath -m "$work/model.gguf")" "${shape[@]}"
    fi
    remember model "$wanted"
    name=${model:+$(basename "$model")}
    python3 -c 'import json, sys; print(json.dumps({"arguments": sys.argv[1], "bytes": int(sys.argv[2])}))' \
        "${name:-$wanted}" "$(stat -Lc %s "$work/model.gguf")" >"$work/model.json"
    [ -f "$work/routing.json" ] || bench routing
}

# The measuring half, with the backends that `build` found. A module from elsewhere does not know where cuBLAS is here.
bench() {
    local load=() library
    while read -r library; do [ -z "$library" ] || load+=(--load "$library"); done < <(recall load || true)
    if [[ $device == CUDA* ]]; then
        local cublas
        cublas=$(python_cublas)
        export LD_LIBRARY_PATH=${cublas:+$cublas/lib:}/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    fi
    python3 "$here/gpu" "$1" --work "$work" --device "$device" \
        "${load[@]}" "${threads[@]}" "${effort[@]}" "${@:2}"
}

measure() {
    [ -f "$work/model.gguf" ] || die "there is no model in $work; run gpu.sh model"
    local budget each=()
    for budget in ${budgets//,/ }; do each+=(--budget "$budget"); done
    bench measure --rounds "$rounds" "${each[@]}"
}

report() { python3 "$here/gpu" report --work "$work" --results "$results" --sources "$(recall sources || true)"; }

# Everything `build` reads, without llama.cpp's programs, models, documents and other devices' backends.
pack() {
    out=${out:-moetune-gpu.tar.gz}
    local staging fetched
    staging=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder of this moment
    trap "rm -rf '$staging'" EXIT
    if [ ! -f "$llama_cpp/ggml/CMakeLists.txt" ]; then
        python3 -m pip download --quiet --no-deps --no-binary :all: --dest "$staging" llama-cpp-python==0.3.36
        fetched=$(ls "$staging"/llama_cpp_python-*.tar.gz)
        tar xzf "$fetched" -C "$staging"
        llama_cpp=${fetched%.tar.gz}/vendor/llama.cpp
    fi
    check_sources
    local tree=$staging/moetune-gpu
    mkdir -p "$tree/benchmarks" "$tree/llama.cpp" "$tree/engine"
    cp "$root/LICENSE" "$tree/"
    project_version >"$tree/sources.txt"
    cp -r "$here/gpu.sh" "$here/gpu" "$tree/benchmarks/"
    cp -r "$root/engine/native" "$tree/engine/"
    local backend others=()
    for backend in cann et hexagon hip metal musa opencl openvino rpc sycl virtgpu vulkan webgpu zdnn zendnn; do
        others+=("--exclude=ggml-$backend")
    done
    tar c -C "$llama_cpp" --exclude-vcs "${others[@]}" CMakeLists.txt LICENSE cmake ggml include licenses src vendor |
        tar x -C "$tree/llama.cpp"
    find "$tree" -name __pycache__ -prune -exec rm -rf {} +
    tar czf "$out" -C "$staging" moetune-gpu
    ls -l "$out"
    [ "$(stat -c %s "$out")" -le $((64 << 20)) ] || die "$out is larger than 64 MiB"
}

case $command in
    help | -h | --help) usage ;;
    pack) pack ;;
    prebuild) prebuild ;;
    build) build ;;
    model) make_model ;;
    measure) measure ;;
    report) report ;;
    run)
        build
        make_model
        measure
        report
        ;;
    *) die "$command: no such command; see gpu.sh help" ;;
esac
