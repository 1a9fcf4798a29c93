"""The small disk from which cloud-init in a guest takes its instance's data (its data source ``NoCloud``)."""

from io import BytesIO
from typing import Final

from msgspec import json

from .spec import Spec

# By this label cloud-init finds it, whatever bus it is on.
LABEL: Final = "cidata"


def seed_image(spec: Spec) -> bytes:
    """An ISO image with what `spec` says under ``cloud_init``.

    It belongs to the instance and is made once: cloud-init begins anew when it reads another instance id, which is
    the instance's UUID unless `meta_data` says something else.

    :param spec: complete, with its UUID
    """
    assert spec.cloud_init is not None
    said = spec.cloud_init
    files = {
        "meta-data": said.meta_data or _meta_data(spec),
        "user-data": said.user_data,
        "vendor-data": said.vendor_data,
        "network-config": said.network_config,
    }
    # cloud-init does not take a seed without the first two, and would read nothing into the others where they are empty
    return _iso({name: text for name, text in files.items() if text or name in ("meta-data", "user-data")})


def _meta_data(spec: Spec) -> str:
    # JSON is YAML, and the name needs no thought about quotes
    return json.encode({"instance-id": spec.uuid, "local-hostname": spec.name}).decode() + "\n"


def _iso(files: dict[str, str]) -> bytes:
    from pycdlib import PyCdlib  # 40 ms, which only such instances pay

    image = PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, text) in enumerate(files.items()):
        data = text.encode()
        # of the three names a file has, systems show the last two
        image.add_fp(BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    out = BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue()
