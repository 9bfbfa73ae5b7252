// interventions.json and correlations.json, read back for the report.
#include <limits>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tools/correlate.h"
#include "tools/intervene.h"

namespace eigentrace {
namespace {

using nlohmann::json;

/// The writer turns NaN and infinities into null.
double number(const json& object, const char* key) {
  const json& found = object.at(key);
  return found.is_null() ? std::numeric_limits<double>::quiet_NaN() : found.get<double>();
}

template <class T>
T member(const json& object, const char* key) {
  return object.at(key).get<T>();
}

MeanInterval interval(const json& object, double level) {
  return {member<int64_t>(object, "n"), number(object, "mean"), number(object, "low"), number(object, "high"),
          level};
}

template <class Fill>
void read_document(const std::string& path, const char* format, Fill&& fill) {
  try {
    const json document = json::parse(read_file(path));
    if (const auto found = member<std::string>(document, "format"); found != format)
      fail(path + ": format '" + found + "', this program reads '" + format + "'");
    fill(document);
  } catch (const json::exception& error) {
    fail(path + ": not what its format says: " + error.what());
  }
}

}  // namespace

InterventionTable read_interventions(const std::string& path) {
  InterventionTable table;
  read_document(path, interventions_format, [&](const json& document) {
    const json& about = document.at("about");
    table.name = member<std::string>(about, "run"), table.stage = member<std::string>(about, "stage");
    table.split = member<std::string>(about, "split"), table.dtype = member<std::string>(about, "dtype");
    table.step = member<int64_t>(about, "step"), table.examples = member<int64_t>(about, "examples");
    for (const json& from : document.at("rows")) {
      InterventionResult row;
      row.change = member<std::string>(from, "change"), row.path = member<std::string>(from, "path");
      row.evaluation.loss = number(from, "loss"), row.evaluation.accuracy = number(from, "accuracy");
      if (from.contains("macro_accuracy")) row.evaluation.macro_accuracy = number(from, "macro_accuracy");
      row.evaluation.labels = member<int64_t>(from, "labels");
      row.seconds = number(from, "seconds");
      if (from.contains("condition")) row.condition = number(from, "condition");
      table.rows.push_back(std::move(row));
    }
  });
  return table;
}

CorrelationTable read_correlations(const std::string& path) {
  CorrelationTable table;
  read_document(path, correlations_format, [&](const json& document) {
    CorrelateRequest& request = table.request;
    request.figure = member<std::string>(document, "figure"), request.level = number(document, "level");
    request.permutations = member<int64_t>(document, "permutations");
    request.resamples = member<int64_t>(document, "resamples");
    request.seed = member<uint64_t>(document, "seed");
    for (const json& from : document.at("runs"))
      table.runs.push_back({member<std::string>(from, "name"), member<std::string>(from, "path"),
                            member<std::string>(from, "family"), member<uint64_t>(from, "seed"),
                            member<int64_t>(from, "group"), number(from, "figure")});
    for (const json& from : document.at("groups"))
      table.groups.push_back(
          {member<std::string>(from, "label"), member<std::vector<std::string>>(from, "differs"),
           member<std::vector<int64_t>>(from, "runs"), interval(from.at("figure"), request.level)});
    for (const json& from : document.at("correlations")) {
      StatisticCorrelation row;
      row.stage = member<std::string>(from, "stage"), row.statistic = member<std::string>(from, "statistic");
      row.layer = member<int64_t>(from, "layer");
      row.correlation.n = member<int64_t>(from, "n"), row.correlation.rho = number(from, "rho");
      row.correlation.p_value = number(from, "p_value"), row.correlation.exact = member<bool>(from, "exact");
      row.q_value = number(from, "q_value");
      row.interval = {number(from, "low"), number(from, "high"), request.level};
      for (const json& value : from.at("values"))
        row.values.push_back(value.is_null() ? std::numeric_limits<double>::quiet_NaN()
                                             : value.get<double>());
      table.correlations.push_back(std::move(row));
    }
    for (const json& from : document.at("changes")) {
      StatisticChange row;
      row.group = member<int64_t>(from, "group"), row.statistic = member<std::string>(from, "statistic");
      row.layer = member<int64_t>(from, "layer");
      row.initial = interval(from.at("initial"), request.level);
      row.trained = interval(from.at("trained"), request.level);
      row.change.difference = interval(from.at("change"), request.level);
      row.change.p_value = number(from, "p_value"), row.change.exact = member<bool>(from, "exact");
      table.changes.push_back(std::move(row));
    }
  });
  return table;
}

}  // namespace eigentrace
