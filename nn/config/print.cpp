// Configurations as YAML and JSON: the keys that have an effect, and no others.
#include <fmt/format.h>

#include "nn/config/config.h"
#include "nn/config/field_io.h"
#include "tensor/io/json_writer.h"

namespace eigentrace {
namespace {

struct Section {
  std::string name, first_key, first_value;  // first_key: what chooses the struct, "" if nothing does
  Fields fields;
};

/// Fields for reading only: nobody writes through them.
template <class Config>
Fields view(const Config& config) {
  return fields_of(const_cast<Config&>(config));
}

Fields view_model(const ModelConfig& model) {
  return std::visit([](const auto& c) { return view(c); }, model);
}

std::vector<Section> sections_of(const RunConfig& run) {
  return {{"dataset", "_name_", task_name(run.dataset),
           std::visit([](const auto& c) { return view(c); }, run.dataset)},
          {"train", "", "", view(run.train)},
          {"model", "layer", layer_name(run.model), view_model(run.model)},
          {"spectral", "", "", view(run.spectral)}};
}

bool unset(const Field& field) {
  return std::visit(
      [](const auto& place) {
        if constexpr (requires { place->has_value(); })
          return !place->has_value();
        else
          return false;
      },
      field.place);
}

std::string yaml_section(const Section& section, const std::string& indent) {
  std::string text;
  if (!section.first_key.empty())
    text += fmt::format("{}{}: {}\n", indent, section.first_key, section.first_value);
  for (const Field& field : section.fields)
    if (field.applies && !unset(field))
      text += fmt::format("{}{}: {}\n", indent, field.name, field_yaml(field));
  return text;
}

void json_section(JsonWriter& json, const Section& section) {
  json.begin_object();
  if (!section.first_key.empty()) json.field(section.first_key, section.first_value);
  for (const Field& field : section.fields)
    if (field.applies && !unset(field)) write_field(json, field);
  json.end_object();
}

}  // namespace

std::string to_yaml(const ModelConfig& config) {
  return yaml_section({"model", "layer", layer_name(config), view_model(config)}, "");
}

std::string to_json(const ModelConfig& config) {
  JsonWriter json;
  json_section(json, {"model", "layer", layer_name(config), view_model(config)});
  return json.text();
}

std::string to_yaml(const RunConfig& run) {
  std::string text =
      fmt::format("format: {}\nseed: {}\nsave: {}\n", config_format, run.seed, run.save ? "True" : "False");
  for (const Section& section : sections_of(run)) text += section.name + ":\n" + yaml_section(section, "  ");
  return text;
}

std::string to_json(const RunConfig& run) {
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_object().field("format", config_format).field("seed", run.seed).field("save", run.save);
  for (const Section& section : sections_of(run)) {
    json.key(section.name);
    json_section(json, section);
  }
  json.end_object();
  return json.text();
}

bool operator==(const RunConfig& a, const RunConfig& b) { return to_yaml(a) == to_yaml(b); }

}  // namespace eigentrace
