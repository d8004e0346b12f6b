#!/usr/bin/env bash
# Make the environment of one client in a folder: integrations/make_environment.sh monailabel|monai_deploy|flare FOLDER
# The tests find it by the environment variable WSSS_CLIENTS=FOLDER.  PIP_FLAGS is handed on to pip.
set -euo pipefail
cd "$(dirname "$0")/.."
client=$1
place=$2/$client
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
"$python" -m venv "$place"
pip() { "$place/bin/python" -m pip install ${PIP_FLAGS:-} "$@"; }
case $client in
monailabel)
    # MONAI Label itself without its list: that asks for sam2, whose sources take minutes to resolve and are not needed.
    pip --requirement integrations/monailabel/requirements.txt .
    pip --no-deps monailabel==0.8.5
    # `import torchvision` is all that is asked of it here, and PyPI's build does not go with torch for CPUs.
    "$place/bin/python" -c 'import torchvision' 2>/dev/null || "$place/bin/python" integrations/monailabel/without_torchvision.py
    ;;
monai_deploy | flare)
    # The SDK's client of Triton wants an older protobuf than TensorBoard is tested with; either takes what pip finds.
    grep -vE '^(grpcio|protobuf)==' constraints.txt >"$place/constraints.txt"
    pip --constraint "$place/constraints.txt" --requirement "integrations/$client/requirements.txt" .
    ;;
*)
    echo "No such client: $client" >&2
    exit 2
    ;;
esac
