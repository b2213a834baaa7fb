// A small pool of worker threads: parallel loops whose chunks go to who has time.
#pragma once

#include <functional>

namespace gr {

// Runs body(chunk, worker) for chunk in [0, chunks) on up to `threads` threads, the caller among
// them; worker is in [0, threads). Where the system grants fewer threads, these do it all. Returns
// when all chunks are done. Each worker begins with an equal share of successive chunks, the same
// ones in every loop of as many: what it wrote in one stage lies in its caches in the next, and
// neighbours in memory are seldom written by two. Who is done takes from the ends of others' shares,
// so the results must not depend on who runs a chunk. Safe to call from several threads at once (the
// second one runs its loop alone) and after fork(). An exception in a chunk is rethrown here after
// the loop.
void parallel_for(int chunks, int threads, const std::function<void(int chunk, int worker)>& body);

}  // namespace gr
