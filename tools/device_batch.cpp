#include "tools/device_batch.h"

namespace eigentrace {

template <class T>
void DeviceBatch::put(Tensor& tensor, const std::vector<T>& values, const Shape& shape, DType dtype) {
  if (!tensor.defined() || !(tensor.shape() == shape)) tensor = Tensor::zeros(shape, dtype, device_);
  tensor.assign(values);
}

void DeviceBatch::load(const Batch& batch, bool masked, LossAverage average) {
  sequences_ = batch.batch, time_ = batch.time;
  if (batch.features > 0) {
    put(input_.values, batch.values, {batch.batch, batch.time, batch.features}, dtype_);
  } else {
    put(input_.tokens.ids, batch.tokens, {batch.batch, batch.time}, DType::i32);
    put(input_.tokens.order, batch.sorted_order, {batch.batch * batch.time}, DType::i32);
  }
  put(lengths_, batch.lengths, {batch.batch}, DType::i32);
  put(valid_time_, std::vector<int32_t>{static_cast<int32_t>(batch.valid_time)}, {1}, DType::i32);
  input_.lengths = masked ? lengths_ : Tensor{};
  input_.valid_time = batch.valid_time < batch.time ? valid_time_ : Tensor{};

  const int64_t capacity = static_cast<int64_t>(batch.labels.size());
  put(labels_.rows, batch.label_rows, {capacity}, DType::i32);
  put(labels_.labels, batch.labels, {capacity}, DType::i32);
  put(labels_.weights, batch.label_weights, {capacity}, DType::f32);
  const bool all = average == LossAverage::all_positions && batch.per_position;
  const int64_t count = all ? batch.batch * batch.valid_time : batch.label_count;
  put(labels_.count, std::vector<double>{static_cast<double>(count)}, {1}, DType::f64);
}

}  // namespace eigentrace
