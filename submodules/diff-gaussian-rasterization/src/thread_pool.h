// A small pool of worker threads: parallel loops whose chunks are handed out dynamically.
#pragma once

#include <functional>

namespace gr {

// Runs body(chunk, worker) for chunk in [0, chunks) on up to `threads` threads, the caller among
// them; worker is in [0, threads). Returns when all chunks are done. The results must not depend
// on which worker runs a chunk. Safe to call from several threads at once (the second one runs its
// loop alone) and after fork(). An exception in a chunk is rethrown here after the loop.
void parallel_for(int chunks, int threads, const std::function<void(int chunk, int worker)>& body);

// The same, with up to `run` successive chunks handed out at a time, fewer where there are few for
// each thread: neighbours in memory are then seldom written by two threads at once, which would
// pass the line between them to and fro.
void parallel_runs(int chunks, int run, int threads,
                   const std::function<void(int chunk, int worker)>& body);

}  // namespace gr
