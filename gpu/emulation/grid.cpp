/* SPDX-License-Identifier: Apache-2.0 */
/* Runs grids: blocks one after the other, the threads of a block as fibers that meet at barriers. */
#include "device_functions.h"
#include "fiber.h"
#include "internal.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace emulation {

coordinates here;

enum class status { ready, at_block, at_warp, gone };

struct thread_state {
    status is;
    uint3 index;
    const char *kind; /* what it waits at, and the source line of it */
    int line;
    unsigned mask, source;
    unsigned long long value;
    warp_votes warp;
    block_votes block;
};

struct warp_state {
    unsigned waiting, absent; /* lanes */
};

struct grid_state {
    const char *kernel; /* null: none runs */
    const std::function<void()> *body;
    threads how;
    unsigned count, current, alive, arrived;
    std::vector<thread_state> thread;
    std::vector<warp_state> warp;
    std::vector<fiber *> fibers;
};
static grid_state &grid = *new grid_state{}; /* never destroyed: what others do at exit may launch */

[[noreturn]] __attribute__((format(printf, 1, 2))) static void fail(const char *format, ...) {
    std::fprintf(stderr, "emulation: kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ",
                 grid.kernel ? grid.kernel : "(none)", here.block.x, here.block.y, here.block.z,
                 here.thread.x, here.thread.y, here.thread.z);
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    std::abort();
}

static void require_fibers(const char *kind, int line) {
    if (grid.kernel == nullptr)
        fail("%s (line %d) outside of a kernel", kind, line);
    if (grid.how != threads::fibers)
        fail("%s (line %d) in a kernel that was launched as flat", kind, line);
}

unsigned lane() {
    return grid.current % 32;
}

static bool same_barrier(const thread_state &a, const thread_state &b) {
    return a.line == b.line && std::strcmp(a.kind, b.kind) == 0;
}

static void release_block() {
    const thread_state *first = nullptr;
    block_votes votes = {0, static_cast<int>(grid.alive)};
    for (const thread_state &t : grid.thread) {
        if (t.is != status::at_block)
            continue;
        first = first ? first : &t;
        if (!same_barrier(*first, t))
            fail("the block diverged: thread (%u, %u, %u) is at %s (line %d), thread (%u, %u, %u) at %s "
                 "(line %d)",
                 first->index.x, first->index.y, first->index.z, first->kind, first->line, t.index.x,
                 t.index.y, t.index.z, t.kind, t.line);
        votes.yes += t.value != 0;
    }
    for (thread_state &t : grid.thread)
        if (t.is == status::at_block) {
            t.is = status::ready;
            t.block = votes;
        }
    grid.arrived = 0;
}

/* True if all lanes of `mask` that are still there wait for each other; then they have their results and are
 * ready. */
static bool release_warp(unsigned warp, unsigned mask) {
    warp_state &w = grid.warp[warp];
    thread_state *lanes = &grid.thread[warp * 32];
    const unsigned needed = mask & ~w.absent;
    if (needed == 0 || (needed & ~w.waiting) != 0)
        return false;
    const thread_state &first = lanes[__builtin_ctz(needed)];
    unsigned ballot = 0;
    for (unsigned i = 0; i < 32; i++) {
        if (!(needed >> i & 1))
            continue;
        if (lanes[i].mask != mask)
            return false;
        if (std::strcmp(lanes[i].kind, first.kind) != 0)
            fail("a warp diverged: lanes of mask %08x wait at %s (line %d) and at %s (line %d)", mask,
                 first.kind, first.line, lanes[i].kind, lanes[i].line);
        ballot |= static_cast<unsigned>(lanes[i].value != 0) << i;
    }
    for (unsigned i = 0; i < 32; i++) {
        if (!(needed >> i & 1))
            continue;
        const unsigned source = lanes[i].source;
        lanes[i].warp = {needed >> source & 1 ? lanes[source].value : ~0ull, ballot, needed};
        lanes[i].is = status::ready;
    }
    w.waiting &= ~needed;
    return true;
}

block_votes block_barrier(const char *kind, int line, bool vote) {
    require_fibers(kind, line);
    thread_state &me = grid.thread[grid.current];
    me.is = status::at_block;
    me.kind = kind;
    me.line = line;
    me.value = vote;
    if (++grid.arrived == grid.alive)
        release_block();
    else
        fiber_suspend();
    return me.block;
}

warp_votes warp_barrier(const char *kind, int line, unsigned mask, unsigned long long value,
                        unsigned source) {
    require_fibers(kind, line);
    const unsigned warp = grid.current / 32, bit = 1u << lane();
    if (!(mask & bit))
        fail("%s (line %d) with mask %08x, which lacks the calling lane %u", kind, line, mask, lane());
    thread_state &me = grid.thread[grid.current];
    me.is = status::at_warp;
    me.kind = kind;
    me.line = line;
    me.mask = mask;
    me.value = value;
    me.source = source;
    grid.warp[warp].waiting |= bit;
    if (!release_warp(warp, mask))
        fiber_suspend();
    return me.warp;
}

/* A thread that leaves may be the last that others waited for. */
static void leave() {
    const unsigned warp = grid.current / 32;
    warp_state &w = grid.warp[warp];
    grid.thread[grid.current].is = status::gone;
    w.absent |= 1u << lane();
    grid.alive--;
    for (unsigned i = 0; i < 32 && w.waiting != 0; i++)
        if (w.waiting >> i & 1)
            release_warp(warp, grid.thread[warp * 32 + i].mask);
    if (grid.alive > 0 && grid.arrived == grid.alive)
        release_block();
}

static void thread_main() {
    (*grid.body)();
    leave();
}

[[noreturn]] static void report_deadlock() {
    for (unsigned i = 0; i < grid.count; i++) {
        const thread_state &t = grid.thread[i];
        bool told = t.is == status::gone;
        unsigned with = 0;
        for (unsigned j = 0; j < grid.count && !told; j++) {
            const bool same =
                grid.thread[j].is == t.is && grid.thread[j].mask == t.mask && same_barrier(grid.thread[j], t);
            told = same && j < i;
            with += same;
        }
        if (told)
            continue;
        std::fprintf(stderr, "emulation: kernel %s: %u threads, (%u, %u, %u) the first, wait at %s (line %d)",
                     grid.kernel, with, t.index.x, t.index.y, t.index.z, t.kind, t.line);
        if (t.is == status::at_warp)
            std::fprintf(stderr, ", mask %08x", t.mask);
        std::fputc('\n', stderr);
    }
    fail("deadlock: no thread can go on; %u of %u have left the kernel", grid.count - grid.alive, grid.count);
}

static void enter(unsigned thread) {
    grid.current = thread;
    here.thread = grid.thread[thread].index;
}

static void reset_block() {
    grid.alive = grid.count;
    grid.arrived = 0;
    for (thread_state &t : grid.thread) {
        t.is = status::ready;
        t.mask = 0; /* tells groups apart in a report, where a thread at a block's barrier has none */
    }
    for (warp_state &w : grid.warp)
        w = {0, 0};
    if (grid.count % 32 != 0)
        grid.warp.back().absent = ~0u << grid.count % 32;
}

static void run_fibers(ordering &order) {
    reset_block();
    while (grid.alive > 0) {
        bool moved = false;
        for (unsigned thread : order.of(grid.count)) {
            if (grid.thread[thread].is != status::ready)
                continue;
            moved = true;
            enter(thread);
            fiber_resume(grid.fibers[thread]);
        }
        if (!moved)
            report_deadlock();
    }
}

static void run_flat(ordering &order) {
    for (unsigned thread : order.of(grid.count)) {
        enter(thread);
        (*grid.body)();
    }
}

static void prepare(const char *name, dim3 blocks, dim3 block, threads how,
                    const std::function<void()> &body) {
    here.block_size = block;
    here.grid_size = blocks;
    grid.kernel = name;
    grid.body = &body;
    grid.how = how;
    grid.count = block.x * block.y * block.z;
    grid.thread.assign(grid.count, {});
    grid.warp.assign((grid.count + 31) / 32, {});
    for (unsigned i = 0; i < grid.count; i++)
        grid.thread[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    while (how == threads::fibers && grid.fibers.size() < grid.count)
        grid.fibers.push_back(fiber_new(thread_main));
}

void run_grid(const char *name, dim3 blocks, dim3 block, threads how, const std::function<void()> &body) {
    static ordering &of_blocks = *new ordering, &of_threads = *new ordering;
    prepare(name, blocks, block, how, body);
    for (unsigned i : of_blocks.of(blocks.x * blocks.y * blocks.z)) {
        here.block = {i % blocks.x, i / blocks.x % blocks.y, i / blocks.x / blocks.y};
        how == threads::fibers ? run_fibers(of_threads) : run_flat(of_threads);
    }
    grid.kernel = nullptr;
}

} // namespace emulation
