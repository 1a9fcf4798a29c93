"""The monitor protocols, pure: bytes in, messages out; no socket, no clock, no event loop.

- :mod:`.framing`   bytes in any cut to whole lines, in linear time, within a limit
- :mod:`.messages`  lines to :class:`~.messages.Message` and back; :class:`~.messages.Event`
- :mod:`.events`    the numbered, bounded event log; watches and streams on it
- :mod:`.event_types`   each event's data as a type: :attr:`Event.typed <drover.qmp.messages.Event.typed>`
- :mod:`.life`      :class:`~.life.Call`, and what all sessions share: moves by a table, and an end
- :mod:`.session`   :class:`~.session.QmpSession`: states, ids, what is in flight
- :mod:`.hmp`       :class:`~.hmp.HmpSession`: the human monitor's text, its prompts and its refusals
- :mod:`.agent`     :class:`~.agent.AgentSession`: the guest agent's channel, and how to be in step on it
- :mod:`.nbd`       the handshake with an NBD server; :mod:`.tls`, the first words of one of TLS
- :mod:`.conversation`  any such talk with one who is no monitor
- :mod:`.schema`    an index over ``query-qmp-schema``
- :mod:`.redact`    what must never reach a log
- :mod:`.timeouts`  how long which command may take

It imports nothing of Drover but :mod:`drover.errors`.
"""
