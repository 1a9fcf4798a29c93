"""Where bytes move: the only rooms that know sockets, threads and event loops.

- :mod:`.address`     where a monitor is: one parser for all forms
- :mod:`.wire`        :class:`~.wire.Wire`, a connected socket; :mod:`.tls`, one that is secured
- :mod:`.socket`      :class:`~.socket.MonitorSocket`, a socket's life: dialled with a deadline
- :mod:`.converse`    a short talk with one who is no monitor, such as an NBD server
- :mod:`.listen`      a listening socket, for one caller at a time; :mod:`.listener`, for a QEMU that dials us
- :mod:`.certificates`  what TLS needs, made
- :mod:`.discovery`   what a QEMU build can do, asked once per build
- :mod:`.verbs`       every verb of a QMP monitor, one line each, for both faces
- :mod:`.link`        one connection: bytes between the wire and the session
- :mod:`.life`        :class:`~.life.Life`: connections made, lost and made anew, for every protocol and face
- :mod:`.base`        what both faces of a QMP monitor share
- :mod:`.connection`  :class:`~.connection.QmpConnection`: blocking, on the caller's thread
- :mod:`.aio`         :class:`~.aio.AsyncQmpConnection`: on asyncio
- :mod:`.human`       :class:`~.human.HumanMonitor` and its kin: HMP by a text socket or through QMP, both faces
- :mod:`.agent`       :class:`~.agent.GuestAgent`: the agent in a guest, both faces
"""
