#include "nn/import.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "tensor/error.h"
#include "tensor/io/pth.h"

namespace eigentrace {
namespace {

// Last parts of names. position_ids: counts from 0, kept beside a table of positions. causal_mask, attn_mask,
// mask: triangles. num_batches_tracked: a counter of batch norms. beta: the pseudo-LTI layer's ones.
constexpr std::string_view harmless[] = {"position_ids", "causal_mask",         "attn_mask",
                                         "mask",         "num_batches_tracked", "beta"};

std::string_view last_part(std::string_view name) { return name.substr(name.rfind('.') + 1); }

std::string list(const std::vector<std::string>& names, const char* what) {
  return names.empty() ? "" : fmt::format("; {} {}: {}", names.size(), what, fmt::join(names, ", "));
}

std::vector<double> values_of(const HostArray& array) {
  if (array.dtype == DType::f32) return {array.as<float>().begin(), array.as<float>().end()};
  return {array.as<double>().begin(), array.as<double>().end()};
}

}  // namespace

bool harmless_extra(const std::string& name) {
  return std::find(std::begin(harmless), std::end(harmless), last_part(name)) != std::end(harmless);
}

ImportReport import_pth(const std::string& path, Model& model) {
  struct Place {
    Tensor value;
    const HostArray* from = nullptr;
  };
  std::map<std::string, Place> places;
  for (const Parameter& p : model.parameters().parameters()) places[p.name] = {p.value, nullptr};
  for (const Buffer& b : model.parameters().buffers()) places[b.name] = {b.value, nullptr};

  const PthFile file = read_pth(path);
  ImportReport report;
  report.ignored = file.ignored;
  std::vector<std::string> missing, unknown, misshapen, mistyped;
  for (const auto& [name, array] : file.tensors) {
    const auto found = places.find(name);
    if (found == places.end()) {
      (harmless_extra(name) ? report.left_out : unknown).push_back(name);
      continue;
    }
    Place& place = found->second;
    place.from = &array;
    if (array.shape != place.value.shape().to_vector())
      misshapen.push_back(fmt::format("{} ({} in the file, {} in the model)", name, shape_text(array.shape),
                                      to_string(place.value.shape())));
    else if (!is_floating(array.dtype))
      mistyped.push_back(fmt::format("{} ({})", name, name_of(array.dtype)));
  }
  for (const auto& [name, place] : places)
    if (!place.from && !harmless_extra(name)) missing.push_back(name);
  const std::string wrong = list(missing, "missing") + list(unknown, "the model does not have") +
                            list(misshapen, "of another shape") + list(mistyped, "of integers");
  if (!wrong.empty())
    fail(fmt::format(
        "import_pth: {}: its tensors are not this model's{}; give the configuration it was trained with",
        path, wrong));

  for (const auto& [name, place] : places) {
    if (!place.from) continue;
    const std::vector<double> values = values_of(*place.from);
    const bool single = place.value.dtype() == DType::f32;
    if (!std::all_of(values.begin(), values.end(),
                     [single](double x) { return std::isfinite(single ? float(x) : x); }))
      report.not_finite.push_back(name);
    place.value.assign(values);
    ++report.tensors;
  }
  return report;
}

}  // namespace eigentrace
