/* A guest without an operating system that makes memory dirty at a pace known beforehand; see record.py.

   Compiled as a multiboot kernel, which QEMU's -kernel starts in 32 bits, flat. FILL is how many MiB get contents first.
   REGIONS are rows of {first MiB, MiB, MiB/s at its busiest, shape}: each touch writes one byte of a page of the region.
   With EAGER it keeps to no clock, but turns so many times in a circle after each touch: then a throttle slows it down. */

typedef unsigned int u32;
typedef unsigned long long u64;

__attribute__((section(".multiboot"), used)) static const u32 header[] = {0x1BADB002, 0, -0x1BADB002};

enum shape { STEADY, BURSTS, GROWING, WAVES, SWEEP };

struct region {
    u32 first, size, rate, shape;
    u32 at;
    u64 owed;
};

static struct region regions[] = {REGIONS};

static u64 ticks(void) { return __builtin_ia32_rdtsc(); }

static u32 random_number(void)
{
    static u32 state = 12345;
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

/* How busy it is at this second, of 256. */
static u32 busy(u32 shape, u32 ms)
{
    switch (shape) {
    case BURSTS: return ms % 6000 < 2000 ? 256 : 16;
    case GROWING: return ms < 40000 ? 26 + ms * 230 / 40000 : 256;
    case WAVES: return ms % 20000 < 10000 ? ms % 10000 * 256 / 10000 : 256 - ms % 10000 * 256 / 10000;
    default: return 256;
    }
}

static void touch(struct region *r)
{
    u32 pages = r->size << 8;
    u32 page = r->shape == SWEEP ? r->at++ % pages : random_number() % pages;
    ++*(volatile unsigned char *)((r->first << 20) + (page << 12) + 7);
}

__attribute__((section(".start"), used)) void _start(void)
{
    static unsigned char stack[4096];
    __asm__ volatile("mov %0, %%esp" ::"r"(stack + sizeof stack - 16));
    u32 page, i, ms = 0, count = sizeof regions / sizeof *regions;
    for (page = 4 << 8; page < FILL << 8; page++)
        for (i = 0; i < 1024; i += 16)
            ((volatile u32 *)(page << 12))[i] = random_number();
#ifdef EAGER
    for (;;) {
        touch(regions);
        for (i = 0; i < EAGER; i++)
            __asm__ volatile("");
    }
#endif
    u64 next = ticks();
    for (;;) {
        while (ticks() < next)
            __asm__ volatile("pause");
        next += KHZ;
        ms++;
        for (i = 0; i < count; i++) {
            struct region *r = regions + i;
            /* pages a second are 256 a MiB; kept in 256,000ths, so that a millisecond's share is whole */
            for (r->owed += (u64)(r->rate << 8) * busy(r->shape, ms); r->owed >= 256000; r->owed -= 256000)
                touch(r);
        }
    }
}
