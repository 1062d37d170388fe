"""Threads in containers: no more than the CPU quota of a control group has time for."""

from __future__ import annotations

import pytest

import fastgd
from fastgd import kernels
from fastgd.kernels import _engine, quota

V1 = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/system.slice\n"
V2 = "0::/user.slice/job\n"


@pytest.mark.parametrize(
    ("groups", "files", "right"),
    [
        (V2, {"cpu.max": "200000 100000\n"}, 2.0),
        (V2, {"cpu.max": "max 100000\n"}, None),
        (V2, {"user.slice/job/cpu.max": "150000 100000\n", "cpu.max": "max 100000"}, 1.5),
        (V2, {"user.slice/job/cpu.max": "max 100000", "user.slice/cpu.max": "50000 100000"}, 0.5),
        ("0::/../../job\n", {"cpu.max": "300000 100000"}, 3.0),
        (V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000",
              "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 2.5),
        # Within a container the group's own folder is the top of the mount.
        (V1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2.0),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        (V1, {"memory/cpu.cfs_quota_us": "1", "memory/cpu.cfs_period_us": "1"}, None),
        (V2, {"cpu.max": "nonsense"}, None),
        (V2, {"cpu.max": "1 0"}, None),
        ("nonsense\n:::\n", {}, None),
        (None, {}, None),
    ],
)  # fmt: skip
def test_quotas_of_both_versions(tmp_path, groups, files, right):
    (tmp_path / "proc/self").mkdir(parents=True)
    if groups is not None:
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert quota.quota(tmp_path) == right
    assert quota.threads(tmp_path) == {2.5: 3, 1.5: 2, 0.5: 1}.get(right, right)


@pytest.mark.skipif(not _engine.has_openmp(), reason="built without OpenMP")
def test_threads_are_no_more_than_the_quota(monkeypatch, capsys):
    def found():
        monkeypatch.setattr(kernels, "_limiting_quota", kernels._heed_quota())
        fastgd.show_config()
        (line,) = [a for a in capsys.readouterr().out.splitlines() if a.startswith("threads")]
        return fastgd.get_num_threads(), line.partition("(")[2]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    fastgd.set_num_threads(None)
    try:
        monkeypatch.setattr(quota, "quota", lambda root="/": None)
        usual, line = found()
        assert line == "OpenMP: yes, processors)"
        monkeypatch.setattr(quota, "quota", lambda root="/": 0.5)
        if usual > 1:
            assert found() == (1, "OpenMP: yes, a quota of 0.5 processors)")
        fastgd.set_num_threads(3)
        assert found() == (3, "OpenMP: yes, set_num_threads)")
        fastgd.set_num_threads(None)
        monkeypatch.setenv("OMP_NUM_THREADS", str(usual))
        assert found() == (usual, "OpenMP: yes, OMP_NUM_THREADS)")
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(quota, "quota", lambda root="/": 4096.0)
        assert found() == (usual, "OpenMP: yes, processors)")
    finally:
        monkeypatch.undo()
        fastgd.set_num_threads(None)
        kernels._heed_quota()
