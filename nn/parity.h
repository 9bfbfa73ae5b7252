#pragma once
// Holds a model to a reference file (format parity/1): output, loss, gradients, what goes into and comes out
// of each mixer, eigenvalues, and parameters after three optimiser steps.
#include <string>
#include <vector>

#include "tensor/context.h"

namespace eigentrace {

/// A row of the tolerance table: the first one whose family and quantity match counts ("" matches all).
struct ToleranceRow {
  const char* family;
  const char* quantity;
  double f64, f32;   ///< of the tensor's largest magnitude
  double roundings;  ///< TF32 and bf16: so many roundings of an operand (2⁻¹¹, 2⁻⁹) on top of f32's
  double with_results;  ///< the same under bf16 activations, whose ops round their results too
  const char* reason;   ///< why it is not the general row
  /// What holds for a run in `dtype` whose products have `precision`; tf32x3 is held to f32's.
  double bound(DType dtype, Precision precision, bool bf16_activations) const;
};
const std::vector<ToleranceRow>& tolerance_table();

/// One quantity of one file.
struct ParityRow {
  std::string file, quantity;
  std::string tensor;  ///< the worst one
  double error =
      0;  ///< max |found − expected| / max |expected| of that tensor; infinite: missing or misshapen
  int64_t tensors = 0;   ///< compared
  ToleranceRow row{};    ///< what it is held to
  double tolerance = 0;  ///< of `row`, for the type and precision that were run
  std::string note;      ///< what is wrong, if it is not a number
  bool pass() const { return error <= tolerance; }
};

/// Builds the model from the file's metadata, runs it on the context's device in `dtype` and the context's
/// precision of products, and compares. Quantities: parameters (names
/// and shapes), output, loss, gradients (of each parameter; under bf16 activations ‖found − expected‖ over
/// all parameters, because rounding may switch the time that max pooling takes and some gradients are what is
/// left of terms that cancel), mixer_in, mixer_out, eigenvalues, published
/// (the published analysis' eigenvalues), statistics (BatchNorm's),
/// loss_per_step, after3, after3_conj; those the file has. Errors: not a file of that format.
std::vector<ParityRow> run_parity(Context& ctx, const std::string& path, DType dtype);

/// "output  2.1e-16 of 1e-09  pass  (encoder …)", one line.
std::string to_string(const ParityRow& row);

}  // namespace eigentrace
