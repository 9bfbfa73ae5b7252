#pragma once
// A parsed YAML (or JSON) document as plain values: what the reader of configurations works on.
#include <string>
#include <vector>

namespace eigentrace {

struct ConfigEntry;

struct ConfigNode {
  enum class Kind : unsigned char { null, scalar, list, map };
  Kind kind = Kind::null;
  std::string text;     ///< of a scalar
  bool quoted = false;  ///< the scalar stood in quotes: text, whatever it looks like
  int line = 0;         ///< 1, 2, …; 0: not from a file
  std::vector<ConfigNode> items;
  std::vector<ConfigEntry> entries;  ///< of a map, in order

  const ConfigNode* find(const std::string& key) const;
};

struct ConfigEntry {
  std::string key;
  ConfigNode value;
};

/// Errors (usage), with `origin` and the line: not YAML, several documents, keys that are no text, a key
/// twice, nesting beyond 32.
ConfigNode parse_yaml(const std::string& text, const std::string& origin);

}  // namespace eigentrace
