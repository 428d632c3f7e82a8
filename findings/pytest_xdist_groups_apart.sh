#!/usr/bin/env bash
# pytest-xdist 3.8.0 under pytest 9.2.0 and 9.1.1, --dist loadgroup.
#
# Tests with one xdist_group mark are promised to one process. xdist appends "@GROUP" to the private attribute _nodeid
# of each item, and its scheduler reads the group from there. Since pytest 9.2 an item's id is a structure of its own, and
# what a plugin writes to _nodeid is read by nobody: the tests of a group are spread over the processes, without a
# word. Tests that share something costly make it in each process; those that share something locked fail now and then.
#
# Seen, eight tests of one group, two processes: pytest 9.1.1 in 1 process, pytest 9.2.0 in 2.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/test_group.py" <<'PY'
import os
import pathlib
import time

import pytest


@pytest.mark.xdist_group("shared")
@pytest.mark.parametrize("number", range(8))
def test_one_of_a_group(number):
    time.sleep(0.2)
    pathlib.Path(os.environ["SEEN"], os.environ["PYTEST_XDIST_WORKER"]).touch()
PY

processes() { # of the group's tests under this version of pytest
    mkdir "$folder/$1.seen"
    python3 -m pip install --quiet --no-compile --target "$folder/$1" "pytest==$1" pytest-xdist==3.8.0
    (cd "$folder" && SEEN="$folder/$1.seen" PYTHONPATH="$folder/$1" python3 -m pytest -q -n 2 --dist loadgroup \
        -p no:cacheprovider test_group.py >"$folder/$1.log") || { cat "$folder/$1.log"; return 1; }
    ls "$folder/$1.seen" | wc -l
}

before=$(processes 9.1.1) now=$(processes 9.2.0)
echo "processes of one group: pytest 9.1.1: $before, 9.2.0: $now"
[ "$before" = 1 ] && [ "$now" = 2 ]
