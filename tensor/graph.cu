#include "tensor/graph.h"

#include <algorithm>

#include "tensor/cuda_check.h"
#include "tensor/error.h"
#include "tensor/launch.h"

namespace eigentrace {

#ifdef EIGENTRACE_WITH_CUDA

struct CapturedGraph::Handle {
  cudaGraphExec_t exec = nullptr;
  ~Handle() {
    if (exec) cudaGraphExecDestroy(exec);
  }
};

CapturedGraph::CapturedGraph(Context& ctx, const std::function<void()>& work)
    : handle_(std::make_unique<Handle>()) {
  if (!ctx.device().is_cuda()) fail("CapturedGraph: a GPU expected, found " + to_string(ctx.device()));
  const cudaStream_t stream = stream_of(ctx);
  cudaGraph_t graph = nullptr;
  // Thread-local: other threads (loader, eigenproblems) may go on calling CUDA.
  ET_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);  // leaves the stream usable; the first error is the one to report
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  ET_CUDA(cudaStreamEndCapture(stream, &graph));
  ET_CUDA(cudaGraphGetNodes(graph, nullptr, &nodes_));
  const cudaError_t status = cudaGraphInstantiate(&handle_->exec, graph, 0);
  cudaGraphDestroy(graph);
  ET_CUDA(status);
}

void CapturedGraph::launch(Context& ctx) const { ET_CUDA(cudaGraphLaunch(handle_->exec, stream_of(ctx))); }

#else

struct CapturedGraph::Handle {};
CapturedGraph::CapturedGraph(Context& ctx, const std::function<void()>&) {
  fail("CapturedGraph: a GPU expected, found " + to_string(ctx.device()));
}
void CapturedGraph::launch(Context&) const {}

#endif

CapturedGraph::~CapturedGraph() = default;

void GraphCache::run(Context& ctx, const std::vector<int64_t>& key, const std::function<void()>& work) {
  nodes_ = 0;
  if (!capture_ || !ctx.device().is_cuda()) return work();
  const auto [place, first_time] = entries_.try_emplace(key);
  Entry& entry = place->second;
  entry.last_use = ++uses_;
  if (first_time) return work();
  if (!entry.graph) {
    constexpr int64_t most = 16;
    const auto has_graph = [](const auto& e) { return e.second.graph != nullptr; };
    if (std::ranges::count_if(entries_, has_graph) >= most) {
      const auto oldest = std::ranges::min_element(
          entries_, {}, [&](const auto& e) { return has_graph(e) ? e.second.last_use : INT64_MAX; });
      synchronise(ctx.device());  // it may still be running
      oldest->second.graph.reset();
    }
    entry.graph = std::make_unique<CapturedGraph>(ctx, work);
  }
  entry.graph->launch(ctx);
  nodes_ = entry.graph->nodes();
}

}  // namespace eigentrace
