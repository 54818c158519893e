/* SPDX-License-Identifier: Apache-2.0 */
/* What tests steer: which call fails, and in what order blocks and threads run. */
#include "cuda_on_host.h"
#include "internal.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulation {

std::recursive_mutex &device_mutex() {
    static std::recursive_mutex &mutex =
        *new std::recursive_mutex; /* never destroyed, like all of the device */
    return mutex;
}

struct fault_state {
    bool read;
    std::string name;
    long k, calls;
};
static fault_state &faults = *new fault_state{};

[[noreturn]] static void refuse(const char *variable, const char *value) {
    std::fprintf(stderr, "emulation: %s=%s is not understood\n", variable, value);
    std::abort();
}

static void set_fault(const std::string &name, long k) {
    faults = {true, name, k, 0};
}

static void read_environment() {
    const char *value = std::getenv("ICMA_EMULATION_FAIL");
    const char *colon = value ? std::strrchr(value, ':') : nullptr;
    if (value != nullptr && (colon == nullptr || std::atol(colon + 1) <= 0))
        refuse("ICMA_EMULATION_FAIL", value);
    set_fault(value ? std::string(value, colon) : "", value ? std::atol(colon + 1) : 0);
}

bool fault(const char *name) {
    const std::lock_guard<std::recursive_mutex> held(device_mutex());
    if (!faults.read)
        read_environment();
    if (faults.name != "any" && faults.name != name)
        return false;
    return ++faults.calls == faults.k;
}

void ordering::follow(const char *wanted) {
    if (wanted_ == wanted)
        return;
    wanted_ = wanted;
    order_.clear();
    if (std::strncmp(wanted, "random:", 7) == 0) {
        kind_ = random;
        state_ = std::strtoull(wanted + 7, nullptr, 10);
    } else if (std::strcmp(wanted, "backward") == 0) {
        kind_ = backward;
    } else if (*wanted == 0 || std::strcmp(wanted, "forward") == 0) {
        kind_ = forward;
    } else {
        refuse("ICMA_EMULATION_ORDER", wanted);
    }
}

void ordering::arrange(unsigned count) {
    order_.resize(count);
    for (unsigned i = 0; i < count; i++)
        order_[i] = kind_ == backward ? count - 1 - i : i;
}

const std::vector<unsigned> &ordering::of(unsigned count) {
    const char *wanted = std::getenv("ICMA_EMULATION_ORDER");
    follow(wanted ? wanted : "");
    if (order_.size() != count)
        arrange(count);
    for (unsigned i = count; kind_ == random && i > 1; i--) {
        state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(order_[i - 1], order_[(state_ >> 33) % i]);
    }
    return order_;
}

} // namespace emulation

extern "C" void icma_emulation_fail(const char *name, long k) {
    const std::lock_guard<std::recursive_mutex> held(emulation::device_mutex());
    emulation::set_fault(name ? name : "", name ? k : 0);
}

extern "C" long icma_emulation_calls(void) {
    const std::lock_guard<std::recursive_mutex> held(emulation::device_mutex());
    return emulation::faults.calls;
}
