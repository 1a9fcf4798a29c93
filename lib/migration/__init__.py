"""A machine moves between two nodes: who may run it at each instant, and what is done next, whatever has happened.

The core is pure: what happened goes in, what is to be done comes out. It knows no clock, no socket and no store.

- :mod:`.machine`  the node that the machine leaves: every state and move in one table. It drives the migration
- :mod:`.arrival`  the node that it comes to: likewise. It holds the newcomer, lets it run, or ends it
- :mod:`.knowledge`  what has been heard, and what follows from it: the words of the first table
- :mod:`.asking`  what is asked for in each of its states; :mod:`.alarms`, what people are told where nobody can tell
- :mod:`.words`  what is heard, and what is asked for: small closed sets
- :mod:`.ports`  what a node must offer, so that it can be done

Whether it comes to its end in time is for others to say, as pure:

- :mod:`.policy`  what to do so that it does, at each look
- :mod:`.combinations`  what goes together, for each pair of QEMU versions, over which transport
- :mod:`.means`  what can be done, one row each; what the machine's owner wishes
- :mod:`.course`, :mod:`.outlook`  what is known so far, and what is to be expected: the end, the blackout
- :mod:`.forecast`  how a guest makes memory dirty, and what becomes of precopy then
- :mod:`.budget`  one link's bandwidth, shared by the migrations that run over it

With real QEMUs: :mod:`.driver`, with :mod:`.source`, :mod:`.target` and :mod:`.pace`; what is told of it,
:mod:`.account`; with both sides on one host, :mod:`.local`.

What it shows by TLS, made anew for each: :mod:`.credentials`.

Its disks:

- :mod:`.storage`  what becomes of each image: it is there, or goes along; pure
- :mod:`.survey`  what there is, on either node; :mod:`.disks` does what was planned

Who may run a machine is said by its owner record alone (:mod:`drover.store.owner`). ``doc/migration.md`` says why the
tables are as they are.
"""
