// `eigentrace parity`: compare with fixtures that the published code computed in float64.
#include "nn/parity.h"

#include <fmt/format.h>

#include "tensor/error.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"

namespace eigentrace {

int parity_command(const ParityOptions& options) {
  Context ctx(parse_device(options.device));
  ctx.precision = parse_precision(options.precision);
  check_precision(ctx.precision, ctx.device());
  if (!options.attention_precision.empty()) {
    ctx.attention_precision = parse_precision(options.attention_precision);
    check_precision(*ctx.attention_precision, ctx.device());
  }
  const bool rounded = ctx.precision != Precision::fp32 ||
                       ctx.attention_precision.value_or(Precision::fp32) != Precision::fp32;
  const std::string type = !options.dtype.empty() ? options.dtype : rounded ? "f32" : "f64";
  if (type != "f64" && type != "f32")
    fail_usage(fmt::format("--dtype: f64 or f32 expected, found '{}'", type));
  if (type == "f64" && rounded)
    fail_usage("parity: a precision of float32 products says nothing about f64; leave out --dtype f64");
  const DType dtype = type == "f64" ? DType::f64 : DType::f32;
  int64_t failed = 0, compared = 0;
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_array();
  for (const std::string& file : options.files) {
    for (const ParityRow& row : run_parity(ctx, file, dtype)) {
      ++compared;
      failed += row.pass() ? 0 : 1;
      if (options.json) {
        json.begin_object().field("file", file).field("quantity", row.quantity).field("tensor", row.tensor);
        json.field("error", row.error).field("tolerance", row.tolerance).field("tensors", row.tensors);
        json.field("pass", row.pass())
            .field("reason", row.row.reason ? row.row.reason : "")
            .field("note", row.note);
        json.end_object();
      } else {
        fmt::print("{}\n", to_string(row));
      }
    }
  }
  json.end_array();
  if (options.json)
    fmt::print("{}\n", json.text());
  else
    fmt::print("{} files, {} quantities in {}{}: {} passed, {} failed\n", options.files.size(), compared,
               type, rounded ? " with " + options.precision + " products" : "", compared - failed, failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace eigentrace
