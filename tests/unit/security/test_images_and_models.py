"""Names that lead elsewhere: picture locations, redirects, model sources, release ids."""

import logging
from pathlib import Path

import pytest
from minimal import message

from ray_app.base.config import ImageLimits
from ray_app.base.errors import UserError
from ray_app.base.images import http_fetch
from ray_app.base.images.decode import ImageError
from ray_app.base.images.fetch import normalize_location, read_image, stat_images
from ray_app.base.images.http_fetch import fetch_url
from ray_app.base.storage import Storage
from ray_app.models.model_sources import resolve
from ray_app.tables.current import CURRENT, current_release

# --- the network ---


@pytest.mark.parametrize("location", ["http://[", "http://[::1", "//[", "http://a]b/"])
def test_a_redirect_to_nonsense_is_an_error_of_that_picture(monkeypatch, location):
    """It was a ValueError that ended the whole batch: one hostile server could stop a caption job."""
    monkeypatch.setattr(http_fetch, "_get", lambda *_: http_fetch._Redirect(location))
    with pytest.raises(ImageError) as caught:
        fetch_url("http://example.com/a.png", ImageLimits())
    assert caught.value.code == "bad_location"


# --- files ---


@pytest.fixture
def world(tmp_path):
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / "ok.png").write_bytes(b"ok")
    (tmp_path / "pins2").mkdir()
    for secret in (tmp_path / "secret.png", tmp_path / "pins2" / "secret.png"):
        secret.write_bytes(b"secret")
    (tmp_path / "pins" / "link.png").symlink_to(tmp_path / "secret.png")
    return tmp_path


def limits(*roots):
    return ImageLimits(allow_roots=list(roots))


@pytest.mark.parametrize("form", ["{}/pins/ok.png", "file://{}/pins/ok.png", "{}/pins2/../pins/ok.png"])
def test_a_picture_below_an_allowed_folder_is_read(world, form):
    location = form.format(world)
    assert read_image(normalize_location(location), limits(f"{world}/pins")) == b"ok"
    assert stat_images([location], limits(f"{world}/pins"))[0] is not None


@pytest.mark.parametrize(
    "form",
    ["{}/secret.png", "file://{}/secret.png", "{}/pins/../secret.png", "file://{}/pins/../secret.png", "{}/pins/link.png",
     "{}/pins2/secret.png", "file://{}/pins/%2e%2e/secret.png", "s3://other/secret.png", "gs://other/secret.png"],
)  # fmt: skip
def test_a_picture_elsewhere_is_refused(world, form):
    location = form.format(world)
    with pytest.raises(ImageError) as caught:
        read_image(normalize_location(location), limits(f"{world}/pins", "s3://ours/pins"))
    assert caught.value.code == "forbidden_path"
    assert stat_images([location], limits(f"{world}/pins")) == [None]


@pytest.mark.parametrize("location", ["s3://ours/pins-of-others/a.png", "s3://ours/pins/../x.png", "s3://ours2/pins/a.png", "gs://ours/pins/a.png"])  # fmt: skip
def test_a_bucket_prefix_ends_where_a_folder_ends(location):
    with pytest.raises(ImageError, match="forbidden_path"):
        read_image(location, limits("s3://ours/pins"))


def test_no_message_of_a_picture_reaches_the_terminal_raw(tmp_path):
    assert message(lambda: read_image(f"{tmp_path}/\x1b[31m\nred.png", ImageLimits()), ImageError).isprintable()


# --- models ---


@pytest.mark.parametrize(
    ("source", "told"),
    [*((f"package:pytest/{path}", "leads out of the package") for path in ("../../etc", "..", "/etc/passwd")),
     *((f"package:{name}", "not installed") for name in ("", "/etc", "../x", "os.path/x", "no_such.inner/x"))],
)  # fmt: skip
def test_a_package_source_stays_in_its_package_whose_name_is_one_word(source, told):
    """A dotted one would import the package, and so run its code, to look for what is in it."""
    assert Path(resolve("package:pytest/__init__.py")).is_file()
    with pytest.raises(UserError, match=told):
        resolve(source)


# --- releases ---


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "", "..", "0123456789abcdef/../x"])
def test_current_cannot_point_out_of_the_releases(tmp_path, name, caplog):
    caplog.set_level(logging.WARNING)
    store = Storage(str(tmp_path / "run"))
    store.write_json(CURRENT, {"id": name, "previous": None})
    for folder in (tmp_path / "elsewhere", tmp_path / "run" / "releases" / "a" / "b"):
        folder.mkdir(parents=True)
        (folder / "release.json").write_text("{}")
    with pytest.raises(UserError, match="does not exist"):
        current_release(store)
    assert "invalid id" in caplog.text
