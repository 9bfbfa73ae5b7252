#pragma once
// Work recorded once and launched many times as one CUDA graph.
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "tensor/context.h"

namespace eigentrace {

/// What `work` enqueued on a context's stream, ready to be launched again: the same kernels on the same
/// addresses. Capacity and addresses come from the slab's determinism: nothing that lives in step memory may
/// outlive `work`, and whatever changes between launches must be read from device memory.
class CapturedGraph {
 public:
  /// Runs `work` on the host without running its kernels. Work that allocates device memory, reads back or
  /// waits is an error here. GPU contexts only.
  CapturedGraph(Context& ctx, const std::function<void()>& work);
  ~CapturedGraph();
  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;

  void launch(Context& ctx) const;
  size_t nodes() const { return nodes_; }

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
  size_t nodes_ = 0;
};

/// Work of several shapes: the first time a key is seen its work runs as it is (modules are loaded,
/// algorithms chosen, tables and plans made), the second time it is captured, from then on replayed. Without
/// a GPU, or with `capture` false, it always runs as it is; the results are the same to the bit.
class GraphCache {
 public:
  explicit GraphCache(bool capture = true) : capture_(capture) {}
  /// `key`: everything that the work bakes in: shapes and addresses. At most 16 graphs are kept.
  void run(Context& ctx, const std::vector<int64_t>& key, const std::function<void()>& work);
  /// Nodes of the graph launched last; 0: the last work ran as it is.
  size_t nodes() const { return nodes_; }

 private:
  struct Entry {
    int64_t last_use = 0;
    std::unique_ptr<CapturedGraph> graph;
  };
  bool capture_;
  int64_t uses_ = 0;
  size_t nodes_ = 0;
  std::map<std::vector<int64_t>, Entry> entries_;
};

}  // namespace eigentrace
