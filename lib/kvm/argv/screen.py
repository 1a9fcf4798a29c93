"""The screen: graphics card, VNC, SPICE."""

from typing import Final

from .launch import Writer, escape
from .places import Places

_VIDEO: Final = {"std": "VGA", "virtio": "virtio-vga", "qxl": "qxl-vga"}
_FIRST_VNC_PORT: Final = 5900


def write_screen(out: Writer, places: Places) -> None:
    """The graphics card, VNC and SPICE."""
    spec = out.spec
    video = spec.machine.video
    if video == "auto":
        video = "std" if spec.screen else "none"
    if video != "none":
        out.device(_VIDEO[video], id="video", **places.video())
    out.add("-display", "none")
    _write_vnc(out)
    _write_spice(out)


def _write_vnc(out: Writer) -> None:
    vnc = out.spec.vnc
    if vnc is None:
        return
    words = [f"unix:{escape(str(out.given.private))}/vnc"]
    if vnc.listen:
        host, _, port = vnc.listen.rpartition(":")
        words = [f"{host}:{int(port) - _FIRST_VNC_PORT}"]
    if vnc.tls_dir:
        out.object("tls-creds-x509", "vnc-tls", endpoint="server", dir=vnc.tls_dir, verify_peer=vnc.tls_verify)
        words.append("tls-creds=vnc-tls")
    if vnc.password:
        words.append("password=on")  # the password itself by QMP: until then nobody is let in
    out.add("-vnc", ",".join(words))
    if vnc.keymap:
        out.add("-k", vnc.keymap)


def _write_spice(out: Writer) -> None:
    spice = out.spec.spice
    if spice is None:
        return
    words = ["unix=on", f"addr={escape(str(out.given.private))}/spice"]
    if spice.listen:
        host, _, port = spice.listen.rpartition(":")
        words = [f"addr={host.strip('[]')}", f"{'tls-port' if spice.tls_dir else 'port'}={port}"]
    if spice.tls_dir:
        words.append(f"x509-dir={escape(spice.tls_dir)}")
    if not spice.password:
        words.append("disable-ticketing=on")
    out.add("-spice", ",".join(words))
