/* SPDX-License-Identifier: Apache-2.0 */
#include "fiber.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define ICMA_WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ICMA_WITH_ASAN 1
#endif
#endif

#ifdef ICMA_WITH_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(ICMA_EMULATION_UCONTEXT)
#define ICMA_EMULATION_UCONTEXT 1
#endif

#ifdef ICMA_EMULATION_UCONTEXT
#include <ucontext.h>
#endif

namespace emulation {

#ifdef ICMA_WITH_ASAN
/* Frames with red zones are larger, and a report is written on the stack of the thread that is at fault. */
constexpr size_t STACK = 256 << 10;

static void leaving(void **fake, const void *bottom, size_t size) {
    __sanitizer_start_switch_fiber(fake, bottom, size);
}
static void arrived(void *fake, const void **bottom, size_t *size) {
    __sanitizer_finish_switch_fiber(fake, bottom, size);
}
#else
constexpr size_t STACK = 64 << 10;

static void leaving(void **, const void *, size_t) {
}
static void arrived(void *, const void **, size_t *) {
}
#endif

#ifdef ICMA_EMULATION_UCONTEXT
/* Portable, at the price of two system calls a switch. */
typedef ucontext_t context;

static void context_make(context *c, void *stack, void (*start)()) {
    getcontext(c);
    c->uc_stack.ss_sp = stack;
    c->uc_stack.ss_size = STACK;
    c->uc_link = nullptr;
    makecontext(c, start, 0);
}
static void context_switch(context *save, context *load) {
    swapcontext(save, load);
}
#else
typedef void *context; /* the stack pointer; the registers that a call preserves stand above it */

extern "C" void icma_emulation_switch(context *save, context load);
asm(".text\n"
    ".globl icma_emulation_switch\n"
    ".type icma_emulation_switch, @function\n"
    "icma_emulation_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size icma_emulation_switch, .-icma_emulation_switch\n");

static void context_make(context *c, void *stack, void (*start)()) {
    /* The first switch pops six registers and returns to `start`, which finds a stack aligned as after a call
     * from nowhere. */
    uintptr_t *top = reinterpret_cast<uintptr_t *>(static_cast<char *>(stack) + STACK);
    *--top = 0;
    *--top = reinterpret_cast<uintptr_t>(start);
    for (int i = 0; i < 6; i++)
        *--top = 0;
    *c = top;
}
static void context_switch(context *save, context *load) {
    icma_emulation_switch(save, *load);
}
#endif

struct fiber {
    context at;
    void *stack;
    void *fake; /* ASan's */
    void (*entry)();
};

static fiber *running;
static struct {
    context at;
    const void *stack;
    size_t size;
    void *fake;
} scheduler;

static void fiber_main() {
    arrived(nullptr, &scheduler.stack, &scheduler.size);
    for (;;) {
        running->entry();
        fiber_suspend();
    }
}

fiber *fiber_new(void (*entry)()) {
    /* A page below the stack that cannot be touched: an overflow is a fault, not a neighbour's memory. */
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void *memory = mmap(nullptr, page + STACK + sizeof(fiber), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
        std::perror("emulation: no memory for a thread's stack");
        std::abort();
    }
    char *stack = static_cast<char *>(memory) + page;
    fiber *f = new (stack + STACK) fiber{}; /* there and not on the heap: LeakSanitizer need not know */
    f->stack = stack;
    f->entry = entry;
    context_make(&f->at, f->stack, fiber_main);
    return f;
}

void fiber_resume(fiber *f) {
    running = f;
    leaving(&scheduler.fake, f->stack, STACK);
    context_switch(&scheduler.at, &f->at);
    arrived(scheduler.fake, nullptr, nullptr);
}

void fiber_suspend() {
    fiber *f = running;
    leaving(&f->fake, scheduler.stack, scheduler.size);
    context_switch(&f->at, &scheduler.at);
    arrived(f->fake, &scheduler.stack, &scheduler.size);
}

} // namespace emulation
