#pragma once
// .pth files in the making: a zip of stored members, and the opcodes of small pickles.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tensor/io/file.h"

namespace eigentrace {

using ZipContent = std::vector<std::pair<std::string, std::string>>;

inline std::string little_endian(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; i++) text += char(value >> 8 * i & 255);
  return text;
}

inline std::string stored_zip(const ZipContent& members) {
  std::string file, directory;
  for (const auto& [name, bytes] : members) {
    const std::string fields =
        little_endian(20, 2) + std::string(8, '\0') + little_endian(crc32(bytes.data(), bytes.size()), 4) +
        little_endian(bytes.size(), 4) + little_endian(bytes.size(), 4) + little_endian(name.size(), 4);
    directory += "PK\1\2" + little_endian(20, 2) + fields + std::string(10, '\0') +
                 little_endian(file.size(), 4) + name;
    file += "PK\3\4" + fields + name + bytes;
  }
  const std::string count = little_endian(members.size(), 2);
  return file + directory + "PK\5\6" + std::string(4, '\0') + count + count +
         little_endian(directory.size(), 4) + little_endian(file.size(), 4) + std::string(2, '\0');
}

/// torch.save's archive around a pickle and its storages 0, 1, …
inline std::string pth_of(const std::string& pickle, const std::vector<std::string>& storages) {
  ZipContent members = {{"a/data.pkl", pickle}, {"a/byteorder", "little"}, {"a/version", "3\n"}};
  for (size_t i = 0; i < storages.size(); i++)
    members.emplace_back("a/data/" + std::to_string(i), storages[i]);
  return stored_zip(members);
}

// Pieces of pickles.
inline std::string py_text(const std::string& text) { return 'X' + little_endian(text.size(), 4) + text; }
inline std::string py_int(int64_t value) { return "\x8A\x08" + little_endian(uint64_t(value), 8); }
inline std::string py_global(const std::string& module, const std::string& name) {
  return 'c' + module + '\n' + name + '\n';
}
inline std::string py_tuple(const std::vector<std::string>& items) {
  std::string text = "(";
  for (const std::string& item : items) text += item;
  return text + 't';
}
inline std::string py_ints(const std::vector<int64_t>& values) {
  std::vector<std::string> items;
  for (const int64_t value : values) items.push_back(py_int(value));
  return py_tuple(items);
}
inline std::string py_dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string text = "}(";
  for (const auto& [key, value] : items) text += py_text(key) + value;
  return text + 'u';
}
inline std::string py_file(const std::string& value) { return "\x80\x02" + value + '.'; }

struct PyTensor {
  std::string type = "FloatStorage", key = "0";
  int64_t elements = 6, offset = 0;
  std::vector<int64_t> shape = {2, 3}, strides = {3, 1};
};
inline std::string py_tensor(const PyTensor& t = {}) {
  const std::string storage = py_tuple({py_text("storage"), py_global("torch", t.type), py_text(t.key),
                                        py_text("cpu"), py_int(t.elements)}) +
                              'Q';
  const std::string hooks = py_global("collections", "OrderedDict") + ")R";
  return py_global("torch._utils", "_rebuild_tensor_v2") +
         py_tuple({storage, py_int(t.offset), py_ints(t.shape), py_ints(t.strides), "\x89", hooks}) + 'R';
}

}  // namespace eigentrace
