#pragma once
// Reverse-mode differentiation: an eager tape, linear in execution order.
//
// A differentiable op is one function in three paragraphs: check shapes, forward, record backward. Example:
//
//   Var unary(Unary f, const Var& x) {
//     Tape& tape = x.tape();
//     Tensor y = tape.ctx().empty_like(x.value());
//     kernels::unary(tape.ctx(), f, x.value(), y);
//     return tape.record(Op::unary, y, {x}, [f, x = x, y](Backward& b) {
//       b.gradient(x, [&](Tensor& dx) { kernels::unary_backward(b.ctx(), f, x.value(), y, b.dy(), dx); });
//     });
//   }
//
// Kernels overwrite; only the tape adds: `gradient` hands out memory to write into and adds it to what other
// consumers of x have sent. Closures keep alive what they capture: capture x only if its value is needed
// backward, else capture `x.ref()`.
#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "autograd/op.h"
#include "tensor/context.h"

namespace eigentrace {

class Tape;

/// Where a value's gradient goes: a slot of the tape, with the value's shape and type. Keeps no memory alive.
struct VarRef {
  int slot = -1;  ///< −1: a constant, no gradient wanted
  Shape shape;
  DType dtype = DType::f32;
};

/// A value on a tape.
class Var {
 public:
  Var() = default;  ///< undefined: an optional operand that is absent
  bool defined() const { return tape_ != nullptr; }
  const Tensor& value() const { return value_; }
  const Shape& shape() const { return value_.shape(); }
  int64_t dim(int axis) const { return value_.dim(axis); }
  int rank() const { return value_.rank(); }
  DType dtype() const { return value_.dtype(); }
  Tape& tape() const { return *tape_; }
  Context& ctx() const;
  bool needs_gradient() const { return slot_ >= 0; }
  VarRef ref() const {
    return {slot_, value_.defined() ? value_.shape() : Shape{},
            value_.defined() ? value_.dtype() : DType::f32};
  }

 private:
  friend class Tape;
  Var(Tape* tape, Tensor value, int slot) : tape_(tape), value_(std::move(value)), slot_(slot) {}
  Tape* tape_ = nullptr;
  Tensor value_;
  int slot_ = -1;
};

/// What a backward closure sees.
class Backward {
 public:
  Context& ctx() const;
  /// True iff any consumer sent a gradient for output `i`.
  bool has_dy(int i = 0) const;
  /// Gradient of output `i`, dense; zeros if no consumer sent one.
  const Tensor& dy(int i = 0);
  /// If x's gradient is wanted: write(dx) must overwrite dx, a dense-rowed tensor of x's shape (it may be a
  /// view into a larger gradient, so its rows may be a stride apart), which is then added to the gradient of
  /// x.
  template <class Write>
  void gradient(const VarRef& x, Write&& write) {
    if (x.slot < 0) return;
    Tensor dx = destination(x);
    write(dx);
    commit(x, dx);
  }
  template <class Write>
  void gradient(const Var& x, Write&& write) {
    gradient(x.ref(), std::forward<Write>(write));
  }
  /// A gradient that is zero but for some rows: write(dx, false) writes all of dx, write(dx, true) adds to
  /// those rows. It waits until x's own node runs, so that another consumer's gradient saves the zeros.
  void add_rows(const VarRef& x, std::function<void(Tensor& dx, bool adds)> write);
  /// As gradient, where the gradient already exists as a tensor (for example dy itself): no copy if it is the
  /// first.
  void add_gradient(const VarRef& x, const Tensor& dx);
  /// For ops with several inputs written by one kernel: destination (undefined if not wanted), then commit.
  Tensor destination(const VarRef& x);
  void commit(const VarRef& x, const Tensor& dx);
  /// For kernels that can add: `sent` is what other consumers have sent so far (or undefined), the result a
  /// place to write sent + own part to (it may be `sent` itself; undefined if not wanted). Then
  /// commit_with_sent.
  Tensor destination_with_sent(const VarRef& x, Tensor& sent);
  void commit_with_sent(const VarRef& x, const Tensor& dx, const Tensor& sent);

 private:
  friend class Tape;
  Backward(Tape& tape, int first_slot) : tape_(tape), first_slot_(first_slot) {}
  Tape& tape_;
  int first_slot_;
};

using BackwardFunction = std::function<void(Backward&)>;

class Tape {
 public:
  /// `recording` false: evaluation. Nothing is kept; dropout and batch statistics are the layers' business.
  explicit Tape(Context& ctx, bool recording = true) : ctx_(ctx), recording_(recording) {}

  Context& ctx() const { return ctx_; }
  bool recording() const { return recording_; }

  /// A value without gradient.
  Var constant(Tensor value) { return Var(this, std::move(value), -1); }
  /// A parameter or an input whose gradient is wanted. `gradient`: where it is to be written (same shape and
  /// type, overwritten); undefined: step memory, read with gradient_of.
  Var leaf(Tensor value, Tensor gradient = {});

  /// Records an op. Returns y as a Var (a constant if no input needs a gradient or the tape does not record).
  Var record(Op op, Tensor y, std::initializer_list<VarRef> inputs, BackwardFunction backward);
  Var record(Op op, Tensor y, std::initializer_list<Var> inputs, BackwardFunction backward);
  std::vector<Var> record_many(Op op, std::vector<Tensor> ys, std::span<const VarRef> inputs,
                               BackwardFunction backward);

  /// Views: y is a part of x's storage (slice along the last axis, reshape, …). The gradient of y is written
  /// straight into that part of x's gradient; parts[i] cuts view i out of a tensor of x's shape. The parts
  /// must be disjoint.
  std::vector<Var> record_views(Op op, const Var& x, std::vector<std::function<Tensor(const Tensor&)>> parts);

  /// Runs the tape backwards from scalar `loss` (dloss = 1) or from several values with given cotangents.
  /// Drops each node as it passes; afterwards every leaf's gradient is written (zeros if nothing reached it).
  void backward(const Var& loss);
  void backward(std::span<const Var> outputs, std::span<const Tensor> cotangents);

  /// Gradient of a leaf after backward.
  const Tensor& gradient_of(const Var& leaf) const;

  /// Name shown in errors and memory reports for ops recorded from now on ("layers.0.attention").
  void set_scope(std::string scope) { scope_ = std::move(scope); }
  const std::string& scope() const { return scope_; }
  /// A number for each random op of a step, counted in execution order: the `op` of dropout's Philox(seed,
  /// step, op, i).
  uint32_t next_random_op() { return random_ops_++; }
  size_t node_count() const { return nodes_.size(); }
  /// Look at every value and gradient; the first one that is not finite is an Error naming op and scope.
  bool check_finite = false;

 private:
  friend class Backward;
  struct Slot {
    Shape shape;
    DType dtype = DType::f32;
    bool padded = false;  // the value's rows are a stride apart, so the gradient's are as well
    Tensor gradient;      // what the first consumer writes, then the sum
    Tensor pending;       // sum of what others sent while the first was still being written (views)
    Tensor destination;   // leaf: where the gradient must end up
    std::function<void(Tensor&, bool)> rows;  // of add_rows: still to be added
    bool leaf = false;
    bool handed = false;    // `gradient` was handed out to be written
    bool seen = false;      // `gradient` is complete as far as it has been sent
    bool borrowed = false;  // `gradient` belongs to another slot too: never add into it
    int view_node = -1;     // a view: its gradient is part `part` of that node's `whole`
    int part = 0;
  };
  struct Node {
    Op op = Op::reshape;
    int first_slot = 0, outputs = 0;
    BackwardFunction backward;
    std::string scope;
    VarRef parent;  // views only: the value they are parts of
    std::vector<std::function<Tensor(const Tensor&)>> parts;
    Tensor whole;
  };
  int new_slot(const Tensor& value);
  Tensor new_gradient(const Slot& slot);
  Tensor destination(int slot);
  void commit(int slot, const Tensor& gradient);
  void add_into(const Tensor& x, Tensor& sum);
  void settle_rows(int slot);
  void finish_views(Node& node);
  void run_backward();
  void check_values(Op op, const char* what, const Tensor& value, const std::string& scope);

  Context& ctx_;
  bool recording_;
  std::vector<Node> nodes_;
  std::vector<Slot> slots_;
  std::string scope_;
  uint32_t random_ops_ = 0;
};

}  // namespace eigentrace
