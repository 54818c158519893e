/* SPDX-License-Identifier: Apache-2.0 */
/* Fibers: a thread of a block, with a stack of its own, that runs until it gives the processor back. Inside
 * the emulation only. */
#ifndef ICMA_EMULATION_FIBER_H
#define ICMA_EMULATION_FIBER_H

namespace emulation {

struct fiber;

/* Never freed: fibers are pooled for the life of the process. `entry` is called anew by the first resume
 * after each return of it. */
fiber *fiber_new(void (*entry)());
/* Called by the scheduler: runs the fiber until it suspends itself or its entry returns. */
void fiber_resume(fiber *f);
/* Called in a fiber. */
void fiber_suspend();

} // namespace emulation

#endif
