#include "nn/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "nn/config/node.h"
#include "tensor/error.h"
#include "tensor/io/json_writer.h"
#include "tensor/io/safetensors.h"

namespace eigentrace {
namespace {

constexpr const char* checkpoint_format = "eigentrace-checkpoint/1";
constexpr const char* optimiser_prefix = "optimiser.";

using Named = std::vector<std::pair<std::string, Tensor>>;

Named tensors_of(const Model& model) {
  Named all;
  for (const Parameter& p : model.parameters().parameters()) all.emplace_back(p.name, p.value);
  for (const Buffer& b : model.parameters().buffers()) all.emplace_back(b.name, b.value);
  return all;
}

void write(const std::string& path, const Named& tensors, std::map<std::string, std::string> metadata) {
  std::vector<Tensor> host;  // what the views below point into
  SafetensorsArrays arrays;
  for (const auto& [name, tensor] : tensors) {
    host.push_back(tensor.clone(Device{}, tensor.dtype()));
    arrays.emplace_back(name, HostView(tensor.dtype(), tensor.shape().to_vector(), host.back().raw()));
  }
  write_safetensors(path, arrays, std::move(metadata));
}

std::map<std::string, std::string> metadata_of(const RunConfig& config, const CheckpointNotes& notes) {
  std::map<std::string, std::string> metadata = {{"format", checkpoint_format}, {"config", to_yaml(config)}};
  if (!notes.made_by.empty()) metadata["made_by"] = notes.made_by;
  if (!notes.symbols.empty()) {
    JsonWriter json;
    metadata["symbols"] = json.values(notes.symbols).text();
  }
  return metadata;
}

void assign(const SafetensorsReader& reader, const std::string& name, const Tensor& tensor) {
  const HostArray array = reader.read(name);
  if (array.dtype == DType::f32)
    tensor.assign(std::vector<float>(array.as<float>().begin(), array.as<float>().end()));
  else if (array.dtype == DType::f64)
    tensor.assign(std::vector<double>(array.as<double>().begin(), array.as<double>().end()));
  else
    fail(fmt::format("tensor '{}': f32 or f64 expected, found {}", name, name_of(array.dtype)));
}

/// The first few names, and how many more there are.
std::string some(const std::vector<std::string>& names) {
  const size_t shown = std::min<size_t>(names.size(), 5);
  std::string text =
      fmt::format("{}", fmt::join(names.begin(), names.begin() + static_cast<int64_t>(shown), ", "));
  return names.size() > shown ? fmt::format("{} and {} more", text, names.size() - shown) : text;
}

/// Reads all of `tensors`; the file may have others only below `allowed`.
void read_all(const std::string& path, const SafetensorsReader& reader, const Named& tensors,
              const char* allowed) {
  std::vector<std::string> missing, misshapen, extra;
  std::set<std::string> known;
  for (const auto& [name, tensor] : tensors) {
    known.insert(name);
    if (!reader.contains(name))
      missing.push_back(name);
    else if (const auto& shape = reader.entries().at(name).shape; shape != tensor.shape().to_vector())
      misshapen.push_back(fmt::format("{} ({} in the file, {} in the model)", name, shape_text(shape),
                                      to_string(tensor.shape())));
  }
  for (const auto& [name, entry] : reader.entries())
    if (!known.count(name) && !name.starts_with(allowed)) extra.push_back(name);
  std::string wrong;
  if (!missing.empty()) wrong += fmt::format("; {} missing: {}", missing.size(), some(missing));
  if (!extra.empty()) wrong += fmt::format("; {} the model does not have: {}", extra.size(), some(extra));
  if (!misshapen.empty())
    wrong += fmt::format("; {} of another shape: {}", misshapen.size(), some(misshapen));
  if (!wrong.empty())
    fail(
        fmt::format("{}: its tensors are not this model's{}; load it with the configuration it was made with",
                    path, wrong));
  for (const auto& [name, tensor] : tensors) assign(reader, name, tensor);
}

SafetensorsReader open(const std::string& path) {
  SafetensorsReader reader(path);
  const auto format = reader.metadata().find("format");
  if (format != reader.metadata().end() && format->second != checkpoint_format)
    fail(fmt::format("{}: format '{}', this program reads '{}'", path, format->second, checkpoint_format));
  // Files of other programs have neither format nor checksum; one flipped bit cannot take both from ours.
  if (format != reader.metadata().end() || reader.metadata().count("crc32")) reader.verify_checksum();
  return reader;
}

std::string state_json(const TrainState& s, int64_t optimiser_steps) {
  JsonWriter json;
  json.begin_object().field("step", s.step).field("optimiser_steps", optimiser_steps);
  json.field("plateau_best", s.plateau.best).field("plateau_scale", s.plateau.scale);
  json.field("plateau_count", s.plateau.count).key("numbers").begin_object();
  for (const auto& [key, value] : s.numbers) json.field(key, value);
  return json.end_object().end_object().text();
}

struct ReadState {
  TrainState state;
  int64_t optimiser_steps = 0;
};

ReadState parse_state(const std::string& path, const std::string& text) {
  const ConfigNode node = parse_yaml(text, path + ": metadata state");
  const auto number = [&](const ConfigNode* n, const char* key) {
    if (n && n->kind == ConfigNode::Kind::null) return std::nan("");  // JSON has no other word for it
    double value = 0;
    const char* end = n ? n->text.data() + n->text.size() : nullptr;
    if (!n || n->text.empty() || std::from_chars(n->text.data(), end, value).ptr != end)
      fail(fmt::format("{}: metadata 'state': '{}' is missing or no number", path, key));
    return value;
  };
  const auto member = [&](const char* key) { return number(node.find(key), key); };
  ReadState read;
  TrainState& s = read.state;
  s.step = static_cast<int64_t>(member("step"));
  read.optimiser_steps = static_cast<int64_t>(member("optimiser_steps"));
  s.plateau = {member("plateau_best"), member("plateau_scale"),
               static_cast<int64_t>(member("plateau_count"))};
  if (const ConfigNode* numbers = node.find("numbers"))
    for (const auto& [key, value] : numbers->entries) s.numbers[key] = number(&value, key.c_str());
  return read;
}

std::string metadata(const SafetensorsReader& reader, const std::string& path, const char* key) {
  const auto found = reader.metadata().find(key);
  if (found == reader.metadata().end())
    fail(fmt::format("{}: has no metadata '{}': not a checkpoint of training", path, key));
  return found->second;
}

}  // namespace

void save_weights(const std::string& path, const Model& model, const RunConfig& config,
                  const CheckpointNotes& notes) {
  write(path, tensors_of(model), metadata_of(config, notes));
}

void save_checkpoint(const std::string& path, const Model& model, const Optimiser& optimiser,
                     const RunConfig& config, const TrainState& state, const CheckpointNotes& notes) {
  Named tensors = tensors_of(model);
  for (const auto& entry : optimiser.state()) tensors.push_back(entry);
  std::map<std::string, std::string> data = metadata_of(config, notes);
  data["state"] = state_json(state, optimiser.steps());
  write(path, tensors, std::move(data));
}

void load_weights(const std::string& path, Model& model) {
  const SafetensorsReader reader = open(path);
  read_all(path, reader, tensors_of(model), optimiser_prefix);
}

TrainState load_checkpoint(const std::string& path, Model& model, Optimiser& optimiser) {
  const SafetensorsReader reader = open(path);
  const ReadState read = parse_state(path, metadata(reader, path, "state"));
  Named tensors = tensors_of(model);
  for (const auto& entry : optimiser.state()) tensors.push_back(entry);
  read_all(path, reader, tensors, optimiser_prefix);
  optimiser.set_steps(read.optimiser_steps);
  return read.state;
}

RunConfig checkpoint_config(const std::string& path) {
  return read_config(metadata(open(path), path, "config"), path + ": config").config;
}

std::vector<std::string> checkpoint_symbols(const std::string& path) {
  const SafetensorsReader reader = open(path);
  std::vector<std::string> symbols;
  if (reader.metadata().count("symbols"))
    for (const ConfigNode& item : parse_yaml(reader.metadata().at("symbols"), path + ": symbols").items)
      symbols.push_back(item.text);
  return symbols;
}

CheckpointAbout describe_checkpoint(const std::string& path) {
  const SafetensorsReader reader = open(path);
  CheckpointAbout about;
  const auto text = [&](const char* key) {
    const auto found = reader.metadata().find(key);
    return found == reader.metadata().end() ? std::string() : found->second;
  };
  about.made_by = text("made_by");
  about.checksum = !text("crc32").empty();
  if (!text("config").empty()) about.config = read_config(text("config"), path + ": config").config;
  if (!text("state").empty()) about.state = parse_state(path, text("state")).state;
  for (const auto& [name, entry] : reader.entries()) {
    ++about.tensors;
    about.bytes += entry.end - entry.begin;
    if (about.dtype.empty()) about.dtype = entry.dtype;
    const HostArray array = reader.read_widened(name);
    if (!name.starts_with(optimiser_prefix)) about.weights += array.count();
    const auto finite = [](const auto& values) {
      return std::ranges::all_of(values, [](auto x) { return std::isfinite(x); });
    };
    if ((array.dtype == DType::f32 && !finite(array.as<float>())) ||
        (array.dtype == DType::f64 && !finite(array.as<double>())))
      about.not_finite.push_back(name);
  }
  return about;
}

LoadedModel load_model(const std::string& path, DType dtype, Device device) {
  const SafetensorsReader reader = open(path);
  LoadedModel loaded;
  loaded.config = read_config(metadata(reader, path, "config"), path + ": config").config;
  loaded.model = make_model(loaded.config.model, loaded.config.seed, dtype, device);
  read_all(path, reader, tensors_of(*loaded.model), optimiser_prefix);
  if (reader.metadata().count("state"))
    loaded.step = parse_state(path, metadata(reader, path, "state")).state.step;
  return loaded;
}

}  // namespace eigentrace
