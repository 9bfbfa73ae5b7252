#pragma once
// Fields of configuration structs from and to text.
#include <span>
#include <string>
#include <vector>

#include "nn/config/fields.h"
#include "nn/config/node.h"

namespace eigentrace {

/// Where a value stands, for errors: "run.yaml:7: train.lr".
struct ConfigPlace {
  std::string origin, path;
  int line = 0;
  std::string text() const;
  ConfigPlace below(const std::string& key, const ConfigNode& node) const;
};

/// Writes the node's value into the field. Errors (usage): another type, a word that is no choice.
void assign_field(const Field& field, const ConfigNode& node, const ConfigPlace& place);

/// Value as YAML text, which assign_field reads back to the same value ("null" for unset).
std::string field_yaml(const Field& field);

/// The candidate with the smallest edit distance to `word`; empty if none is at all alike.
std::string nearest(const std::string& word, std::span<const std::string> candidates);
/// "; did you mean 'x'?" or the list of the candidates.
std::string suggestion(const std::string& word, std::span<const std::string> candidates);

class JsonWriter;
void write_field(JsonWriter& json, const Field& field);

}  // namespace eigentrace
