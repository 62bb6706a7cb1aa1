"""``[proxy]``: what is refused, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from registry.cli import app


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[proxy]\n", "'upstreams' is missing"),
        ('[[proxy.upstreams]]\nprefix = "Up"\nurl = "https://x.example"\n', "beginning of repository names"),
        ('[[proxy.upstreams]]\nprefix = "up"\n', "'url' is missing"),
        ('[[proxy.upstreams]]\nprefix = "up"\nurl = "http://x.example.org"\n', "must be an https:// URL"),
        ('[[proxy.upstreams]]\nprefix = "up"\nurl = "https://localhost"\n', "http://"),
        ('[[proxy.upstreams]]\nprefix = "up"\nurl = "https://u:p@x.example"\n', "must be an https:// URL"),
        ('[[proxy.upstreams]]\nprefix = "up"\nurl = "https://x.example"\nusername = "a"\n', "needs one of"),
        ('[[proxy.upstreams]]\nprefix = "up"\nurl = "https://x.example"\npassword-env = "A"\n', "without username"),
        (
            '[[proxy.upstreams]]\nprefix = "up"\nurl = "https://x.example"\n'
            '[[proxy.upstreams]]\nprefix = "up"\nurl = "https://y.example"\n',
            "this prefix is there already",
        ),
        (
            '[[proxy.upstreams]]\nprefix = "up"\nurl = "https://x.example"\nusername = "a"\n'
            'password-env = "NOT_SET_1"\n',
            "NOT_SET_1 holds no password",
        ),
    ],
)
def test_settings_that_are_wrong(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "registry.toml").write_text(text)
    done = CliRunner().invoke(app, ["config", "check", str(tmp_path / "registry.toml")])
    assert said in str(done.exception)
