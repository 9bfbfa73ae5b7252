// The only file that knows yaml-cpp.
#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>

#include "nn/config/node.h"
#include "tensor/error.h"

namespace eigentrace {
namespace {

ConfigNode convert(const YAML::Node& node, const std::string& origin, int depth) {
  ConfigNode out;
  out.line = node.Mark().line + 1;
  if (depth > 32) fail_usage(fmt::format("{}:{}: nested more than 32 levels deep", origin, out.line));
  switch (node.Type()) {
    case YAML::NodeType::Undefined:
    case YAML::NodeType::Null:
      break;
    case YAML::NodeType::Scalar:
      out.kind = ConfigNode::Kind::scalar;
      out.text = node.Scalar();
      out.quoted = node.Tag() == "!";
      break;
    case YAML::NodeType::Sequence:
      out.kind = ConfigNode::Kind::list;
      for (const YAML::Node& item : node) out.items.push_back(convert(item, origin, depth + 1));
      break;
    case YAML::NodeType::Map:
      out.kind = ConfigNode::Kind::map;
      for (const auto& entry : node) {
        if (!entry.first.IsScalar())
          fail_usage(fmt::format("{}:{}: a key is text, found a list or a mapping", origin,
                                 entry.first.Mark().line + 1));
        const std::string key = entry.first.Scalar();
        if (out.find(key))
          fail_usage(fmt::format("{}:{}: the key '{}' stands twice in one section; remove one", origin,
                                 entry.first.Mark().line + 1, key));
        out.entries.push_back({key, convert(entry.second, origin, depth + 1)});
        out.entries.back().value.line = entry.first.Mark().line + 1;
      }
      break;
  }
  return out;
}

}  // namespace

const ConfigNode* ConfigNode::find(const std::string& key) const {
  const auto found =
      std::find_if(entries.begin(), entries.end(), [&](const auto& entry) { return entry.key == key; });
  return found == entries.end() ? nullptr : &found->value;
}

ConfigNode parse_yaml(const std::string& text, const std::string& origin) {
  // yaml-cpp's parser recurses over brackets without a limit of its own.
  int depth = 0, deepest = 0;
  for (char c : text) {
    depth += c == '[' || c == '{' ? 1 : (c == ']' || c == '}' ? -1 : 0);
    deepest = std::max(deepest, depth);
  }
  if (deepest > 256) fail_usage(fmt::format("{}: more than 256 brackets open at once", origin));
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    if (documents.empty()) return {};
    if (documents.size() > 1)
      fail_usage(fmt::format("{}: one document expected, found {}", origin, documents.size()));
    return convert(documents[0], origin, 0);
  } catch (const YAML::Exception& error) {
    fail_usage(fmt::format("{}:{}: not YAML: {}", origin, error.mark.line + 1, error.msg));
  }
}

}  // namespace eigentrace
