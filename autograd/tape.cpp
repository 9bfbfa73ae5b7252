#include "autograd/tape.h"

#include <fmt/format.h>

#include <cmath>

#include "tensor/error.h"
#include "tensor/kernels.h"

namespace eigentrace {

Context& Var::ctx() const { return tape_->ctx(); }

// --- Tape: forward ----------------------------------------------------------------------------------------

int Tape::new_slot(const Tensor& value) {
  Slot slot;
  slot.shape = value.shape();
  slot.dtype = value.dtype();
  slot.padded =
      value.rank() <= 3 && is_floating(slot.dtype) && !value.contiguous() && collapses_to_rows(value);
  slots_.push_back(std::move(slot));
  return static_cast<int>(slots_.size()) - 1;
}

Var Tape::leaf(Tensor value, Tensor gradient) {
  if (!recording_) return constant(std::move(value));
  const int id = new_slot(value);
  slots_[static_cast<size_t>(id)].leaf = true;
  slots_[static_cast<size_t>(id)].destination = std::move(gradient);
  return Var(this, std::move(value), id);
}

Var Tape::record(Op op, Tensor y, std::initializer_list<VarRef> inputs, BackwardFunction backward) {
  return record_many(op, {std::move(y)}, std::span(inputs.begin(), inputs.size()), std::move(backward))[0];
}

Var Tape::record(Op op, Tensor y, std::initializer_list<Var> inputs, BackwardFunction backward) {
  std::vector<VarRef> refs;
  for (const Var& input : inputs) refs.push_back(input.ref());
  return record_many(op, {std::move(y)}, refs, std::move(backward))[0];
}

std::vector<Var> Tape::record_many(Op op, std::vector<Tensor> ys, std::span<const VarRef> inputs,
                                   BackwardFunction backward) {
  if (check_finite)
    for (const Tensor& y : ys) check_values(op, "value", y, scope_);
  bool wanted = false;
  for (const VarRef& input : inputs) wanted = wanted || input.slot >= 0;
  wanted = wanted && recording_;
  std::vector<Var> outputs;
  const int first = static_cast<int>(slots_.size());
  for (Tensor& y : ys) {
    const int slot = wanted ? new_slot(y) : -1;
    outputs.push_back(Var(this, std::move(y), slot));
  }
  if (wanted) {
    Node node;
    node.op = op;
    node.first_slot = first;
    node.outputs = static_cast<int>(ys.size());
    node.backward = std::move(backward);
    node.scope = scope_;
    nodes_.push_back(std::move(node));
  }
  return outputs;
}

std::vector<Var> Tape::record_views(Op op, const Var& x,
                                    std::vector<std::function<Tensor(const Tensor&)>> parts) {
  std::vector<Var> outputs;
  const int first = static_cast<int>(slots_.size());
  const bool wanted = x.needs_gradient() && recording_;
  for (size_t i = 0; i < parts.size(); ++i) {
    Tensor y = parts[i](x.value());
    int slot = -1;
    if (wanted) {
      slot = new_slot(y);
      slots_[static_cast<size_t>(slot)].view_node = static_cast<int>(nodes_.size());
      slots_[static_cast<size_t>(slot)].part = static_cast<int>(i);
    }
    outputs.push_back(Var(this, std::move(y), slot));
  }
  if (wanted) {
    Node node;
    node.op = op;
    node.first_slot = first;
    node.outputs = static_cast<int>(parts.size());
    node.scope = scope_;
    node.parent = x.ref();
    node.parts = std::move(parts);
    nodes_.push_back(std::move(node));
  }
  return outputs;
}

// --- Tape: backward ---------------------------------------------------------------------------------------

Tensor Tape::destination(int id) {
  // By index throughout: the call for a view's parent below may look at other slots, but never adds one.
  Slot& slot = slots_[static_cast<size_t>(id)];
  if (slot.handed || slot.seen) return new_gradient(slot);
  slot.handed = true;
  if (slot.view_node >= 0) {
    Node& node = nodes_[static_cast<size_t>(slot.view_node)];
    if (!node.whole.defined()) node.whole = destination(node.parent.slot);
    slot.gradient = node.parts[static_cast<size_t>(slot.part)](node.whole);
  } else if (slot.destination.defined()) {
    slot.gradient = slot.destination;
  } else {
    slot.gradient = new_gradient(slot);
  }
  return slot.gradient;
}

Tensor Tape::new_gradient(const Slot& slot) {
  return slot.padded ? kernels::empty_rows(ctx_, slot.shape, slot.dtype) : ctx_.empty(slot.shape, slot.dtype);
}

void Tape::add_into(const Tensor& x, Tensor& sum) { kernels::accumulate(ctx_, x, sum); }

void Tape::commit(int id, const Tensor& gradient) {
  Slot& slot = slots_[static_cast<size_t>(id)];
  const bool primary = slot.handed && !slot.seen && gradient.raw() == slot.gradient.raw() &&
                       gradient.shares_storage(slot.gradient);
  if (primary) {
    slot.seen = true;
    if (slot.pending.defined()) add_into(slot.pending, slot.gradient), slot.pending = {};
  } else if (slot.seen) {
    if (slot.borrowed) {  // out of place: the memory is another slot's as well
      Tensor sum = ctx_.empty(slot.shape, slot.dtype);
      kernels::binary(ctx_, kernels::Binary::add, slot.gradient, gradient, sum);
      slot.gradient = sum, slot.borrowed = false;
    } else {
      add_into(gradient, slot.gradient);
    }
  } else if (slot.handed) {  // the first consumer is still writing (a view's parent)
    if (slot.pending.defined())
      add_into(gradient, slot.pending);
    else
      slot.pending = gradient;
  } else if (slot.view_node >= 0 || slot.destination.defined()) {  // a fixed place to write to
    Tensor place = destination(id);
    kernels::copy(ctx_, gradient, place);
    slots_[static_cast<size_t>(id)].seen = true;
  } else {
    slot.gradient = gradient;
    slot.seen = true;
    slot.borrowed = true;
  }
}

void Tape::settle_rows(int id) {
  Slot& slot = slots_[static_cast<size_t>(id)];
  if (!slot.rows) return;
  const auto write = std::move(slot.rows);
  slot.rows = nullptr;
  if (slot.seen && !slot.borrowed) return write(slot.gradient, true);
  Tensor dx = destination(id);
  write(dx, false);
  commit(id, dx);
}

void Tape::finish_views(Node& node) {
  if (!node.whole.defined()) return;  // no part was reached
  for (int i = 0; i < node.outputs; ++i) {
    const size_t id = static_cast<size_t>(node.first_slot + i);
    if (slots_[id].seen) continue;
    Tensor part = node.parts[static_cast<size_t>(i)](node.whole);
    kernels::fill(ctx_, part, 0.0);
  }
  commit(node.parent.slot, node.whole);
}

void Tape::run_backward() {
  while (!nodes_.empty()) {
    Node& node = nodes_.back();
    for (int i = 0; i < node.outputs; ++i) settle_rows(node.first_slot + i);
    const auto first = slots_.begin() + node.first_slot;
    bool reached = false;
    for (auto slot = first; slot != first + node.outputs; ++slot) reached = reached || slot->seen;
    if (reached) {
      ctx_.slab().set_label(fmt::format("{} {} backward", node.scope, name_of(node.op)));
      if (check_finite)
        for (int i = 0; i < node.outputs; ++i) {
          const Slot& slot = slots_[static_cast<size_t>(node.first_slot + i)];
          if (slot.seen) check_values(node.op, "gradient", slot.gradient, node.scope);
        }
      if (node.backward) {
        Backward backward(*this, node.first_slot);
        node.backward(backward);
      } else {
        finish_views(node);
      }
    }
    for (int i = 0; i < node.outputs; ++i) {
      Slot& slot = slots_[static_cast<size_t>(node.first_slot + i)];
      slot.gradient = {}, slot.pending = {};
    }
    nodes_.pop_back();  // releases what the closure kept
  }
  for (Slot& slot : slots_) {
    if (!slot.leaf || slot.seen) continue;
    slot.gradient = slot.destination.defined() ? slot.destination : ctx_.empty(slot.shape, slot.dtype);
    kernels::fill(ctx_, slot.gradient, 0.0);
    slot.seen = true;
  }
}

void Tape::backward(const Var& loss) {
  Tensor one = ctx_.empty(loss.shape(), loss.dtype());
  kernels::fill(ctx_, one, 1.0);
  backward(std::span(&loss, 1), std::span(&one, 1));
}

void Tape::backward(std::span<const Var> outputs, std::span<const Tensor> cotangents) {
  if (!recording_) fail("Tape::backward: this tape does not record");
  for (size_t i = 0; i < outputs.size(); ++i)
    if (outputs[i].needs_gradient()) commit(outputs[i].slot_, cotangents[i]);
  run_backward();
}

const Tensor& Tape::gradient_of(const Var& leaf) const {
  if (leaf.slot_ < 0) fail("Tape::gradient_of: the value is a constant");
  return slots_[static_cast<size_t>(leaf.slot_)].gradient;
}

void Tape::check_values(Op op, const char* what, const Tensor& value, const std::string& scope) {
  if (ctx_.dry() || !is_floating(value.dtype())) return;
  for (double x : value.to_vector<double>())
    if (!std::isfinite(x))
      fail(fmt::format("{} of op {} in '{}' is not finite ({}), shape {}", what, name_of(op), scope, x,
                       to_string(value)));
}

// --- Backward ---------------------------------------------------------------------------------------------

Context& Backward::ctx() const { return tape_.ctx_; }

bool Backward::has_dy(int i) const { return tape_.slots_[static_cast<size_t>(first_slot_ + i)].seen; }

const Tensor& Backward::dy(int i) {
  Tape::Slot& slot = tape_.slots_[static_cast<size_t>(first_slot_ + i)];
  if (!slot.seen) {
    slot.gradient = tape_.ctx_.empty(slot.shape, slot.dtype);
    kernels::fill(tape_.ctx_, slot.gradient, 0.0);
    slot.seen = true;
  }
  return slot.gradient;
}

Tensor Backward::destination(const VarRef& x) { return x.slot < 0 ? Tensor{} : tape_.destination(x.slot); }

void Backward::commit(const VarRef& x, const Tensor& dx) {
  if (x.slot >= 0) tape_.commit(x.slot, dx);
}

void Backward::add_rows(const VarRef& x, std::function<void(Tensor& dx, bool adds)> write) {
  if (x.slot < 0) return;
  Tape::Slot& slot = tape_.slots_[static_cast<size_t>(x.slot)];
  const bool waits = !slot.leaf && slot.view_node < 0 && !slot.handed && !slot.rows;
  if (waits) {
    slot.rows = std::move(write);
    return;
  }
  gradient(x, [&](Tensor& dx) { write(dx, false); });
}

Tensor Backward::destination_with_sent(const VarRef& x, Tensor& sent) {
  if (x.slot < 0) return {};
  const Tape::Slot& slot = tape_.slots_[static_cast<size_t>(x.slot)];
  if (!slot.seen) return tape_.destination(x.slot);
  sent = slot.gradient;
  return slot.borrowed ? tape_.ctx_.empty(slot.shape, slot.dtype) : slot.gradient;
}

void Backward::commit_with_sent(const VarRef& x, const Tensor& dx, const Tensor& sent) {
  if (x.slot < 0) return;
  if (!sent.defined()) return tape_.commit(x.slot, dx);
  Tape::Slot& slot = tape_.slots_[static_cast<size_t>(x.slot)];
  slot.gradient = dx, slot.borrowed = false;
}

void Backward::add_gradient(const VarRef& x, const Tensor& dx) { commit(x, dx); }

}  // namespace eigentrace
