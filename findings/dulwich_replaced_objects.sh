#!/usr/bin/env bash
# dulwich 1.2.21 against git (2.39.5).
#
# git's refs/replace put one object in the place of another for every reading command: a history whose old commits
# were cut off by `git replace --graft`, or a file whose blob was replaced. dulwich does not read these refs. It walks
# the original commits and gives the original file, so that a corpus made with dulwich and one made with git
# differ for the same checkout and the same commit id. `git --no-replace-objects` agrees with dulwich.
#
# Seen: git's log has the commits third, first; dulwich's walker third, second, first; git reads 'value = 9',
# dulwich 'value = 3'.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --no-compile --target "$folder/packages" dulwich==1.2.21 urllib3==2.8.0

git init --quiet "$folder/repository"
cd "$folder/repository"
git config user.name author
git config user.email author@example.org
value=0
for subject in first second third; do
    value=$((value + 1))
    echo "value = $value" >file.py
    git add file.py
    git commit --quiet --message "$subject"
done
git replace --graft HEAD HEAD~2
git replace "$(git rev-parse HEAD:file.py)" "$(echo "value = 9" | git hash-object -w --stdin)"

by_git="$(git log --format=%s | xargs) $(git show HEAD:file.py)"
original="$(git --no-replace-objects log --format=%s | xargs) $(git --no-replace-objects show HEAD:file.py)"
by_dulwich=$(
    PYTHONPATH="$folder/packages" python3 - <<'PY'
from dulwich.object_store import tree_lookup_path
from dulwich.repo import Repo

with Repo(".") as repository:
    subjects = [entry.commit.message.decode().strip() for entry in repository.get_walker()]
    _, blob = tree_lookup_path(repository.object_store.__getitem__, repository[repository.head()].tree, b"file.py")
    print(*subjects, repository[blob].data.decode().strip())
PY
)
echo "git: $by_git"
echo "git without replaced objects: $original"
echo "dulwich: $by_dulwich"
if [ "$by_git" != "third first value = 9" ] || [ "$original" != "third second first value = 3" ]; then
    echo "changed: git read other objects"
    exit 1
fi
if [ "$by_dulwich" != "$original" ]; then
    echo "changed: dulwich gave the original objects when this was seen"
    exit 1
fi
