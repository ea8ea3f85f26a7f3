"Git as it is elsewhere: it refuses, hangs, may not be run, or is asked from within a hook."
import os
import subprocess
import time

import pytest
from helpers import fresh, sweep_here

from bioai_esol.training import lineage

RIDGE = ['train', '--architecture', 'ridge', '--run-tag', 'r']


def git(folder, *args):
    command = ['git', '-C', folder, '-c', 'user.name=me', '-c', 'user.email=me@here', *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path):
    "The folder of a package in a checkout of its own, all of it committed."
    folder = tmp_path / 'checkout/package'
    folder.mkdir(parents=True)
    (folder / '__init__.py').touch()
    git(folder.parent, 'init')
    git(folder.parent, 'add', '.')
    git(folder.parent, 'commit', '-m', 'first')
    return folder


def test_a_git_that_hangs_is_given_up(package, tmp_path, monkeypatch):
    (tmp_path / 'git').write_text('#!/bin/sh\nsleep 40\n')
    (tmp_path / 'git').chmod(0o755)
    monkeypatch.setenv('PATH', f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(lineage, 'GIT_TIMEOUT_S', 1.)
    start = time.monotonic()
    assert lineage.code_version(package) == dict(code_problem='git did not answer within 1 s')
    assert lineage.uncommitted_files(package) == ('unknown, git did not answer within 1 s',)
    assert time.monotonic() - start < 20


def test_the_repository_of_a_hook_is_not_taken_for_ours(package, tmp_path, monkeypatch):
    commit = git(package, 'rev-parse', 'HEAD')
    other = tmp_path / 'other'
    other.mkdir()
    git(other, 'init')
    for name, value in dict(GIT_DIR=other / '.git', GIT_WORK_TREE=other, GIT_INDEX_FILE=other / '.git/index').items():
        monkeypatch.setenv(name, str(value))
    assert lineage.code_version(package) == dict(code_version=commit, git_commit=commit, git_dirty='false')


def test_a_copy_within_another_checkout_has_no_code_version(package):
    (package / 'copy').mkdir()
    (package / 'copy/__init__.py').touch()
    assert lineage.code_version(package / 'copy') == {}


def test_dubious_ownership_is_said_before_the_sweep_and_by_the_rule(program, tmp_path, monkeypatch):
    monkeypatch.setenv('GIT_TEST_ASSUME_DIFFERENT_OWNER', '1')
    if 'code_problem' not in lineage.code_version():
        pytest.skip('the tests run without a checkout')
    sweep_here(fresh(tmp_path), 'a', 1)
    words = ('detected dubious ownership', 'git config --global --add safe.directory')
    done = program('promote', '--run-tag', 'a', '--dry-run', '--gap-threshold', '9', '--r2-tolerance', '0.99')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    [rule] = [line for line in done.stdout.splitlines() if '✗ code_version' in line]
    assert all(word in rule for word in words)
    done = program(*RIDGE)
    assert done.returncode == 0 and all(word in done.stderr for word in words)
    assert done.stderr.index(words[0]) < done.stderr.rindex('1/1 runs')
