"""The program that a probe machine runs, in the place of its firmware, to prove that guest code really runs.

It does what a kernel needs and a BIOS does not: it enters long mode by way of protected mode, gets
exceptions, a page fault and interrupts of both timers, uses SSE, and computes. In the end it writes
how it went to isa-debug-exit, which ends QEMU. As it goes, it writes a letter for each stage that it
has entered to isa-debugcon.
"""

from collections.abc import Mapping
from typing import Final

SIZE: Final = 0x10000  # bytes: as small as firmware may be
EXIT_PORT: Final = 0xF4
TRACE_PORT: Final = 0xE9
RESET_VECTOR: Final = SIZE - 16
TO_START: Final = bytes.fromhex("ea000000f0")  # ljmp 0xf000, 0


def _exit_code(written: int) -> int:
    return written << 1 | 1  # isa-debug-exit's, never 0


PROVEN: Final = _exit_code(42)
FAILURES: Final[Mapping[int | None, str]] = {
    0: "guest code makes its CPU reset",
    _exit_code(43): "guest code computes something wrong",
    _exit_code(44): "guest code gets an exception that it should not",
}
STAGES: Final[Mapping[str, str]] = {
    "r": "real mode",
    "p": "protected mode",
    "l": "long mode",
    "u": "a page fault, after an undefined instruction",
    "f": "SSE",
    "s": "a loop of 20 million rounds",
    "c": "the first timer interrupt",
    "t": "the local APIC's timer interrupt",
}
# Bytes and source; a test assembles the source again. Only where the first part ends up matters: 0x8000.
LISTING: Final = """
                     | .intel_syntax noprefix
                     | .code16
# Real mode, from the ROM at f000:0000. Copy all of it to 0x8000, where a kernel would run from.
fa                   | start: cli
fc                   | cld
b072                 | mov al, 'r'
e6e9                 | out 0xe9, al
31c0                 | xor ax, ax
8ec0                 | mov es, ax
8ed0                 | mov ss, ax
bc0070               | mov sp, 0x7000
31f6                 | xor si, si
bf0080               | mov di, 0x8000
b90004               | mov cx, 0x400
2ef3a4               | rep movsb es:[di], cs:[si]
# Tables of pages at 0x1000: the first 2 MiB, and the 2 MiB around the local APIC, uncached.
bf0010               | mov di, 0x1000
b90040               | mov cx, 0x4000
f3aa                 | rep stosb es:[di], al
8ed8                 | mov ds, ax
c70600100320         | mov word ptr [0x1000], 0x2003
c70600200330         | mov word ptr [0x2000], 0x3003
c70618200340         | mov word ptr [0x2018], 0x4003
c70600308300         | mov word ptr [0x3000], 0x0083
66c706b84f9b00e0fe   | mov dword ptr [0x4fb8], 0xfee0009b
# Protected mode.
0f0116ef81           | lgdt [gdtr]
66b811000000         | mov eax, 0x11
0f22c0               | mov cr0, eax
ea58801800           | ljmp 0x18, protected
                     | .code32
b070                 | protected: mov al, 'p'
e6e9                 | out 0xe9, al
b810000000           | mov eax, 0x10
8ed8                 | mov ds, eax
8ec0                 | mov es, eax
8ed0                 | mov ss, eax
# Long mode: PAE and SSE; the tables; EFER.LME; paging, and the cache on.
b820060000           | mov eax, 0x620
0f22e0               | mov cr4, eax
b800100000           | mov eax, 0x1000
0f22d8               | mov cr3, eax
b9800000c0           | mov ecx, 0xc0000080
0f32                 | rdmsr
80cc01               | or ah, 1
0f30                 | wrmsr
b813000080           | mov eax, 0x80000013
0f22c0               | mov cr0, eax
ea928000000800       | ljmp 0x08, long
                     | .code64
b06c                 | long: mov al, 'l'
e6e9                 | out 0xe9, al
# 64 gates at 0x5000. All lead to `trap` but these four.
0f011c25f5810000     | lidt [idtr]
bf00500000           | mov edi, 0x5000
b940000000           | mov ecx, 64
66c707bd81           | gate: mov word ptr [rdi], offset trap
c747020800008e       | mov dword ptr [rdi+2], 0x8e000008
66c747060000         | mov word ptr [rdi+6], 0
48c7470800000000     | mov qword ptr [rdi+8], 0
83c710               | add edi, 16
ffc9                 | dec ecx
75df                 | jnz gate
66c7042560500000c181 | mov word ptr [0x5060], offset undefined
66c70425e0500000c881 | mov word ptr [0x50e0], offset missing
66c7042500520000d981 | mov word ptr [0x5200], offset tick
66c7042500530000e181 | mov word ptr [0x5300], offset tock
# An undefined instruction.
0f0b                 | ud2
b075                 | mov al, 'u'
e6e9                 | out 0xe9, al
# A page that is not there.
b800002000           | mov eax, 0x200000
48bb8877665544332211 | mov rbx, 0x1122334455667788
488918               | mov [rax], rbx
483918               | cmp [rax], rbx
0f85a7000000         | jne wrong
b066                 | mov al, 'f'
e6e9                 | out 0xe9, al
# SSE, which every CPU of 64 bits has, and which an emulator of instructions may not have.
66480f6ec3           | movq xmm0, rbx
660fd4c0             | paddq xmm0, xmm0
66480f7ec0           | movq rax, xmm0
4801db               | add rbx, rbx
4839d8               | cmp rax, rbx
0f8589000000         | jne wrong
b073                 | mov al, 's'
e6e9                 | out 0xe9, al
# Work: 10 ms for a CPU, 0.1 s for TCG, half a minute for an emulator behind /dev/kvm.
b9002d3101           | mov ecx, 20000000
ffc9                 | count: dec ecx
75fc                 | jnz count
b063                 | mov al, 'c'
e6e9                 | out 0xe9, al
# Halt until the PIT has ticked three times by way of the PIC, 1 ms each.
b011                 | mov al, 0x11
e620                 | out 0x20, al
b020                 | mov al, 0x20
e621                 | out 0x21, al
b004                 | mov al, 4
e621                 | out 0x21, al
b001                 | mov al, 1
e621                 | out 0x21, al
b0fe                 | mov al, 0xfe
e621                 | out 0x21, al
ba0000e0fe           | mov edx, 0xfee00000
c782f0000000ff010000 | mov dword ptr [rdx+0xf0], 0x1ff
c7825003000000070000 | mov dword ptr [rdx+0x350], 0x700
b034                 | mov al, 0x34
e643                 | out 0x43, al
b0a9                 | mov al, 0xa9
e640                 | out 0x40, al
b004                 | mov al, 4
e640                 | out 0x40, al
31ed                 | xor ebp, ebp
fb                   | sti
f4                   | ticks: hlt
83fd03               | cmp ebp, 3
72fa                 | jb ticks
# The same by the local APIC's timer.
fa                   | cli
b074                 | mov al, 't'
e6e9                 | out 0xe9, al
b0ff                 | mov al, 0xff
e621                 | out 0x21, al
31ed                 | xor ebp, ebp
c782e00300000b000000 | mov dword ptr [rdx+0x3e0], 0xb
c7822003000030000200 | mov dword ptr [rdx+0x320], 0x20030
c78280030000a0860100 | mov dword ptr [rdx+0x380], 100000
fb                   | sti
f4                   | tocks: hlt
83fd03               | cmp ebp, 3
72fa                 | jb tocks
# Done.
b02a                 | mov al, 42
e6f4                 | end: out 0xf4, al
fa                   | cli
f4                   | hlt
# What goes wrong.
b02b                 | wrong: mov al, 43
ebf8                 | jmp end
b02c                 | trap: mov al, 44
ebf4                 | jmp end
# Handlers: step over it; map it; count.
4883042402           | undefined: add qword ptr [rsp], 2
48cf                 | iretq
c704250830000083002000 | missing: mov dword ptr [0x3008], 0x200083
4883c408             | add rsp, 8
48cf                 | iretq
b020                 | tick: mov al, 0x20
e620                 | out 0x20, al
ffc5                 | inc ebp
48cf                 | iretq
c782b000000000000000 | tock: mov dword ptr [rdx+0xb0], 0
ffc5                 | inc ebp
48cf                 | iretq
# Tables: code of 64 bits (8), data (0x10), code of 32 bits (0x18).
1f00                 | gdtr: .word 31
ff810000             | .long gdt
ff03                 | idtr: .word 0x3ff
0050000000000000     | .quad 0x5000
0000000000000000     | gdt: .quad 0
00000000009b2000     | .quad 0x00209b0000000000
ffff00000093cf00     | .quad 0x00cf93000000ffff
ffff0000009bcf00     | .quad 0x00cf9b000000ffff
"""


def firmware() -> bytes:
    """The program, as QEMU's ``-bios`` takes it."""
    rows = [line.partition("|")[0] for line in LISTING.splitlines() if not line.startswith("#")]
    return (bytes.fromhex("".join(rows)).ljust(RESET_VECTOR, b"\0") + TO_START).ljust(SIZE, b"\0")


def stage(trace: str) -> str:
    """How far it got.

    :param trace: what it wrote to isa-debugcon
    """
    return STAGES.get(trace[-1:], "nowhere")
