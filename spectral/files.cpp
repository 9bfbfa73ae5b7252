#include "spectral/files.h"

#include <cmath>
#include <deque>
#include <map>

#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/io/json_writer.h"
#include "tensor/io/npy.h"

namespace eigentrace {

namespace {

constexpr Family families[] = {Family::softmax_attention,
                               Family::linear_attention,
                               Family::norm_attention,
                               Family::mamba2,
                               Family::mamba2_pseudo_lti,
                               Family::mamba1,
                               Family::lru,
                               Family::s5,
                               Family::s4};
constexpr SpectrumKind kinds[] = {SpectrumKind::time_varying, SpectrumKind::fixed,
                                  SpectrumKind::fixed_per_head, SpectrumKind::fixed_per_channel,
                                  SpectrumKind::selective};

/// Arrays on their way into a .npz, with the memory of those made for it.
class Arrays {
 public:
  using Shape = std::vector<int64_t>;
  void add(const std::string& name, const Shape& shape, const std::vector<double>& values) {
    views_.emplace_back(name, HostView(shape, values));
  }
  void keep(const std::string& name, const Shape& shape, std::vector<double> values) {
    add(name, shape, doubles_.emplace_back(std::move(values)));
  }
  void keep(const std::string& name, const Shape& shape, std::vector<int64_t> values) {
    views_.emplace_back(name, HostView(shape, integers_.emplace_back(std::move(values))));
  }
  void number(const std::string& name, int64_t value) { keep(name, {}, std::vector<int64_t>{value}); }
  void number(const std::string& name, double value) { keep(name, {}, std::vector<double>{value}); }
  void text(const std::string& name, const std::string& value) {
    const auto& bytes = texts_.emplace_back(value.begin(), value.end());
    views_.emplace_back(name, HostView({int64_t(bytes.size())}, bytes));
  }
  const std::vector<std::pair<std::string, HostView>>& views() const { return views_; }

 private:
  std::vector<std::pair<std::string, HostView>> views_;
  std::deque<std::vector<double>> doubles_;
  std::deque<std::vector<int64_t>> integers_;
  std::deque<std::vector<uint8_t>> texts_;
};

template <class Range>
std::vector<double> copy(const Range& range) {
  return {range.begin(), range.end()};
}

void add_spectrum(Arrays& arrays, const std::string& at, const LayerSpectrum& spectrum) {
  arrays.text(at + "family", name_of(spectrum.family));
  arrays.text(at + "kind", name_of(spectrum.kind));
  arrays.text(at + "reading", spectrum.reading);
  arrays.text(at + "gauge", spectrum.has_gauge ? name_of(spectrum.gauge) : "none");
  arrays.add(at + "log_abs", spectrum.shape, spectrum.log_abs);
  if (spectrum.arg.empty())
    arrays.keep(at + "arg", spectrum.shape, std::vector<double>(spectrum.log_abs.size(), 0.0));
  else
    arrays.add(at + "arg", spectrum.shape, spectrum.arg);
  arrays.number(at + "first_step", spectrum.first_step);
  arrays.number(at + "full_count", spectrum.full_count);
  if (!spectrum.channels.empty())
    arrays.keep(at + "channels", {int64_t(spectrum.channels.size())}, spectrum.channels);
  if (!spectrum.series.empty())
    arrays.keep(at + "series", {int64_t(spectrum.series.size())}, spectrum.series);
  if (spectrum.kind == SpectrumKind::fixed_per_channel)
    arrays.keep(at + "certificate", {4},
                std::vector<double>{spectrum.max_residual, spectrum.max_condition, spectrum.max_error_bound,
                                    spectrum.certified ? 1.0 : 0.0});
  const StreamedCounts& counts = spectrum.streamed;
  if (counts.count == 0) return;
  arrays.keep(
      at + "streamed/counts", {5},
      std::vector<int64_t>{counts.count, counts.non_finite, counts.zeros, counts.unit, counts.expanding});
  arrays.number(at + "streamed/log_spectral_radius", counts.log_spectral_radius);
  std::vector<double> rows;
  for (const auto& row : counts.radius_percent) rows.insert(rows.end(), row.begin(), row.end());
  arrays.keep(at + "streamed/radius_percent",
              {int64_t(counts.radius_percent.size()), int64_t(radius_edges.size()) - 1}, rows);
}

/// One array a field, [rows, …] over the statistics given ([…] if `single`).
void add_statistics(Arrays& arrays, const std::string& at, const std::vector<SpectrumStatistics>& rows,
                    bool single) {
  std::vector<std::string> order;
  std::map<std::string, std::pair<std::vector<double>, bool>> fields;  // values, one number a row?
  for (const SpectrumStatistics& row : rows)
    visit_fields(row, [&](const std::string& name, auto value) {
      auto [found, fresh] = fields.try_emplace(name);
      if (fresh) order.push_back(name);
      if constexpr (std::is_arithmetic_v<decltype(value)>) {
        found->second.first.push_back(double(value)), found->second.second = true;
      } else {
        found->second.first.insert(found->second.first.end(), value.begin(), value.end());
      }
    });
  for (const std::string& name : order) {
    auto& [values, scalar] = fields[name];
    Arrays::Shape shape;
    if (!single) shape.push_back(int64_t(rows.size()));
    if (!scalar) shape.push_back(int64_t(values.size() / rows.size()));
    arrays.keep(at + name, shape, std::move(values));
  }
}

void json_statistics(JsonWriter& json, const SpectrumStatistics& statistics) {
  json.begin_object();
  visit_fields(statistics, [&](const std::string& name, auto value) {
    json.key(name);
    if constexpr (std::is_arithmetic_v<decltype(value)>)
      json.value(value);
    else
      json.values(value);
  });
  json.end_object();
}

void json_part(JsonWriter& json, const ReplayPart& part) {
  json.begin_object().field("relative_error", part.relative_error).field("y_norm", part.y_norm);
  json.field("dead", part.dead).end_object();
}

void json_layer(JsonWriter& json, const LayerRecord& record) {
  const LayerSpectrum& spectrum = record.spectrum;
  json.begin_object().field("layer", spectrum.layer).field("family", name_of(spectrum.family));
  json.field("kind", name_of(spectrum.kind)).field("reading", spectrum.reading);
  if (spectrum.has_gauge) json.field("gauge", name_of(spectrum.gauge));
  json.key("shape").values(spectrum.shape);
  json.field("first_step", spectrum.first_step).field("full_count", spectrum.full_count);
  json.field("sampled", spectrum.sampled());
  if (spectrum.kind == SpectrumKind::fixed_per_channel && spectrum.reading == "exact") {
    json.key("eigenproblem").begin_object().field("max_residual", spectrum.max_residual);
    json.field("max_condition", spectrum.max_condition).field("max_error_bound", spectrum.max_error_bound);
    json.field("certified", spectrum.certified).end_object();
  }
  if (record.replay) {
    const ReplayResult& replay = *record.replay;
    json.key("replay").begin_object().field("text", replay.text()).key("layer");
    json_part(json, replay.layer);
    json.key("heads").begin_array();
    for (const ReplayPart& head : replay.heads) json_part(json, head);
    json.end_array().field("sequences", replay.sequences);
    if (replay.channels > 0) json.field("channels", replay.channels).field("condition", replay.condition);
    json.end_object();
  }
  if (record.comparison) {
    const ReadingComparison& c = *record.comparison;
    json.key("published_reading").begin_object().field("count", c.count).field("non_finite", c.non_finite);
    json.field("mean_difference", c.mean_difference).field("median_difference", c.median_difference);
    json.field("mean_log_difference", c.mean_log_difference);
    json.field("exact_mean", c.exact_mean).field("exact_std", c.exact_std);
    json.field("published_mean", c.published_mean).field("published_std", c.published_std);
    json.key("exact_percent").values(c.exact_percent);
    json.key("published_percent").values(c.published_percent);
    json.key("published_as_published").values(c.published_as_published).end_object();
  }
  json.key("all");
  json_statistics(json, record.statistics.all);
  json.key("heads").begin_array();
  for (const SpectrumStatistics& head : record.statistics.heads) json_statistics(json, head);
  json.end_array().end_object();
}

/// Reads one spectrum's arrays back, naming what is missing.
class Reader {
 public:
  Reader(const std::string& path, const std::map<std::string, HostArray>& arrays, std::string at)
      : path_(path), arrays_(arrays), at_(std::move(at)) {}
  bool has(const std::string& name) const { return arrays_.count(at_ + name) > 0; }
  const HostArray& array(const std::string& name) const {
    const auto found = arrays_.find(at_ + name);
    if (found == arrays_.end()) broken(name, "is missing");
    return found->second;
  }
  template <class T>
  std::vector<T> values(const std::string& name) const {
    const auto span = array(name).as<T>();
    return {span.begin(), span.end()};
  }
  int64_t integer(const std::string& name) const {
    const auto found = values<int64_t>(name);
    if (found.size() != 1) broken(name, "is not one number");
    return found[0];
  }
  std::string text(const std::string& name) const {
    const auto bytes = values<uint8_t>(name);
    return {bytes.begin(), bytes.end()};
  }
  template <class T, size_t n>
  T named(const std::string& name, const T (&all)[n]) const {
    const std::string wanted = text(name);
    for (const T one : all)
      if (wanted == name_of(one)) return one;
    broken(name, "is not one of those known: " + wanted);
  }
  [[noreturn]] void broken(const std::string& name, const std::string& what) const {
    fail("read_spectra: " + path_ + ": array " + at_ + name + " " + what +
         "; expected a file written by eigentrace spectrum");
  }

 private:
  const std::string& path_;
  const std::map<std::string, HostArray>& arrays_;
  std::string at_;
};

LayerSpectrum read_one(const Reader& reader, int64_t layer) {
  LayerSpectrum spectrum;
  spectrum.layer = layer;
  spectrum.family = reader.named("family", families);
  spectrum.kind = reader.named("kind", kinds);
  spectrum.reading = reader.text("reading");
  const std::string gauge = reader.text("gauge");
  spectrum.has_gauge = gauge != "none";
  spectrum.gauge =
      gauge == name_of(Gauge::readout_normalised) ? Gauge::readout_normalised : Gauge::state_normalised;
  spectrum.shape = reader.array("log_abs").shape;
  spectrum.log_abs = reader.values<double>("log_abs"), spectrum.arg = reader.values<double>("arg");
  const size_t rank = spectrum.time_dependent()                          ? 3
                      : spectrum.kind == SpectrumKind::fixed_per_channel ? 2
                                                                         : 1;
  if (spectrum.shape.size() != rank) reader.broken("log_abs", "has another rank than its kind");
  if (reader.array("arg").shape != spectrum.shape) reader.broken("arg", "has another shape than log_abs");
  bool real = true;
  for (const double angle : spectrum.arg) real = real && angle == 0;
  if (real) spectrum.arg.clear();
  spectrum.first_step = reader.integer("first_step"), spectrum.full_count = reader.integer("full_count");
  if (reader.has("channels")) spectrum.channels = reader.values<int64_t>("channels");
  if (reader.has("series")) spectrum.series = reader.values<int64_t>("series");
  if (rank == 2 && int64_t(spectrum.channels.size()) != spectrum.shape[0])
    reader.broken("channels", "does not name every row of log_abs");
  if (spectrum.kind == SpectrumKind::selective && int64_t(spectrum.series.size()) != spectrum.shape[2])
    reader.broken("series", "does not name every column of log_abs");
  if (reader.has("certificate")) {
    const auto numbers = reader.values<double>("certificate");
    if (numbers.size() != 4) reader.broken("certificate", "has not four numbers");
    spectrum.max_residual = numbers[0], spectrum.max_condition = numbers[1];
    spectrum.max_error_bound = numbers[2], spectrum.certified = numbers[3] != 0;
  }
  if (!reader.has("streamed/counts")) return spectrum;
  const auto counts = reader.values<int64_t>("streamed/counts");
  const auto rows = reader.values<double>("streamed/radius_percent");
  const auto largest = reader.values<double>("streamed/log_spectral_radius");
  const size_t bins = radius_edges.size() - 1;
  if (counts.size() != 5 || largest.size() != 1 || rows.size() % bins != 0)
    reader.broken("streamed/counts", "and its companions have the wrong sizes");
  spectrum.streamed = {counts[0], counts[1], counts[2], counts[3], counts[4], largest[0], {}};
  for (size_t row = 0; row < rows.size(); row += bins)
    spectrum.streamed.radius_percent.emplace_back(rows.begin() + int64_t(row),
                                                  rows.begin() + int64_t(row + bins));
  return spectrum;
}

}  // namespace

std::string spectrum_json(const SpectrumRecord& record) {
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_object().field("format", spectrum_format).field("kind", "eigentrace-spectrum");
  json.key("about").begin_object();
  for (const auto& [name, value] : record.about) json.field(name, value);
  json.end_object();
  json.key("radius_edges").values(radius_edges);
  json.key("phase_edges_degrees").values(phase_edges_degrees);
  json.key("quantile_levels").values(quantile_levels);
  json.key("memory_lags").values(memory_lags);
  json.key("layers").begin_array();
  for (const LayerRecord& layer : record.layers) json_layer(json, layer);
  json.end_array().end_object();
  return json.text();
}

void write_spectrum(const std::string& path, const SpectrumRecord& record) {
  const std::string summary = spectrum_json(record);
  Arrays arrays;
  arrays.number("format", spectrum_format);
  arrays.keep("radius_edges", {int64_t(radius_edges.size())}, copy(radius_edges));
  arrays.keep("phase_edges_degrees", {int64_t(phase_edges_degrees.size())}, copy(phase_edges_degrees));
  arrays.keep("quantile_levels", {int64_t(quantile_levels.size())}, copy(quantile_levels));
  arrays.keep("memory_lags", {int64_t(memory_lags.size())}, copy(memory_lags));
  arrays.text("metadata", summary);
  for (const LayerRecord& layer : record.layers) {
    const std::string at = "layer" + std::to_string(layer.spectrum.layer) + "/";
    add_spectrum(arrays, at, layer.spectrum);
    add_statistics(arrays, at + "all/", {layer.statistics.all}, true);
    if (!layer.statistics.heads.empty()) add_statistics(arrays, at + "heads/", layer.statistics.heads, false);
    if (layer.published)
      add_spectrum(arrays, "published" + std::to_string(layer.spectrum.layer) + "/", *layer.published);
  }
  write_npz(path + ".npz", arrays.views());
  write_atomically(path + ".json", summary + "\n");
}

std::vector<LayerSpectrum> read_spectra(const std::string& npz_path) {
  const auto arrays = read_npz(npz_path);
  const int64_t format = Reader(npz_path, arrays, "").integer("format");
  if (format != spectrum_format)
    fail("read_spectra: " + npz_path + ": expected format " + std::to_string(spectrum_format) + ", found " +
         std::to_string(format) + "; use the program that wrote it");
  std::map<std::pair<int, int64_t>, std::string> found;  // (published?, layer) → prefix
  const std::string suffix = "/log_abs";
  for (const auto& [name, array] : arrays)
    for (const bool published : {false, true}) {
      const std::string start = published ? "published" : "layer";
      if (name.rfind(start, 0) != 0 || name.size() <= start.size() + suffix.size() ||
          name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0)
        continue;
      const std::string digits = name.substr(start.size(), name.size() - start.size() - suffix.size());
      if (digits.find_first_not_of("0123456789") == std::string::npos && digits.size() < 10)
        found[{published, std::stoll(digits)}] = start + digits + "/";
    }
  std::vector<LayerSpectrum> spectra;
  for (const auto& [key, prefix] : found)
    spectra.push_back(read_one(Reader(npz_path, arrays, prefix), key.second));
  return spectra;
}

}  // namespace eigentrace
