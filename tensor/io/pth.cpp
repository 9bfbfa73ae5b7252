// Layout: PREFIX/data.pkl is the pickle; a tensor in it is a call of _rebuild_tensor_v2 on a persistent id
// ('storage', type, key, device, count), and the storage's elements are the member PREFIX/data/KEY.
#include "tensor/io/pth.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>
#include <optional>
#include <set>

#include "tensor/io/json_writer.h"
#include "tensor/io/pickle.h"
#include "tensor/io/zip_reader.h"

namespace eigentrace {
namespace {

using Kind = PickleValue::Kind;

constexpr std::string_view globals[] = {"collections.OrderedDict",
                                        "torch._utils._rebuild_tensor_v2",
                                        "torch._utils._rebuild_parameter",
                                        "torch.FloatStorage",
                                        "torch.DoubleStorage",
                                        "torch.HalfStorage",
                                        "torch.BFloat16Storage",
                                        "torch.LongStorage",
                                        "torch.IntStorage",
                                        "torch.ByteStorage",
                                        "torch.BoolStorage"};

enum class Encoding : uint8_t { plain, half, bfloat16 };

struct StorageType {
  std::string_view name;
  DType dtype;   ///< read as
  size_t bytes;  ///< of an element in the file
  Encoding encoding = Encoding::plain;
};
constexpr StorageType storage_types[] = {{"torch.FloatStorage", DType::f32, 4},
                                         {"torch.DoubleStorage", DType::f64, 8},
                                         {"torch.HalfStorage", DType::f32, 2, Encoding::half},
                                         {"torch.BFloat16Storage", DType::f32, 2, Encoding::bfloat16},
                                         {"torch.LongStorage", DType::i64, 8},
                                         {"torch.IntStorage", DType::i32, 4},
                                         {"torch.ByteStorage", DType::u8, 1},
                                         {"torch.BoolStorage", DType::u8, 1}};

constexpr std::string_view wrapper_keys[] = {"model", "state_dict", "model_state_dict"};
constexpr uint64_t max_pickle_bytes = uint64_t(1) << 26;
constexpr size_t max_axes = 64;  // PyTorch's own bound

float widen_half(uint16_t h) {
  const uint32_t sign = uint32_t(h >> 15) << 31, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | fraction << 13);
  if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = float(fraction) * 0x1p-24f;
  return sign ? -small : small;
}

void copy_element(const char* from, Encoding encoding, size_t bytes, std::byte* to) {
  if (encoding == Encoding::plain) {
    std::memcpy(to, from, bytes);
    return;
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  const float value =
      encoding == Encoding::half ? widen_half(bits) : std::bit_cast<float>(uint32_t(bits) << 16);
  std::memcpy(to, &value, 4);
}

class PthReader {
 public:
  PthReader(const std::string& path, uint64_t max_bytes)
      : where_("read_pth: " + path), zip_(path, where_, ".pth"), storage_left_(max_bytes), left_(max_bytes) {
    for (const ZipMember& m : zip_.members())
      if (!members_.emplace(m.name, &m).second)
        fail(fmt::format("{}: expected each member once, found {} twice", where_, json_quoted(m.name)));
  }

  PthFile read() {
    prefix_ = find_prefix();
    const std::string pickle_where = fmt::format("{}: {}", where_, json_quoted(prefix_ + "data.pkl"));
    const std::string bytes = zip_.read(*members_.at(prefix_ + "data.pkl"), max_pickle_bytes);
    pickle_.emplace(bytes, pickle_where, globals);
    PthFile file;
    std::set<std::string> names;
    const PickleValue& state = state_dict(file);
    for (size_t i = 0; i + 1 < state.items.size(); i += 2) {
      const PickleValue &key = at(state.items[i]), &value = at(state.items[i + 1]);
      if (value.kind != Kind::call) {
        if (key.kind == Kind::text) file.ignored.push_back(key.text);
        continue;
      }
      if (key.kind != Kind::text)
        fail(fmt::format("{}: expected a tensor's name, found {}", where_, name_of(key.kind)));
      std::string name = stripped(key.text);
      if (!names.insert(name).second)
        fail(fmt::format("{}: expected each name once, found {} twice", where_, json_quoted(name)));
      HostArray array = tensor(value, fmt::format("{}: {}", where_, json_quoted(name)));
      file.tensors.emplace_back(std::move(name), std::move(array));
    }
    if (file.tensors.empty())
      fail(where_ +
           ": expected a state_dict, or one under model, state_dict or model_state_dict; found no "
           "tensors; save model.state_dict()");
    return file;
  }

 private:
  const PickleValue& at(uint32_t place) const { return pickle_->at(place); }

  std::string find_prefix() const {
    std::string prefix;
    for (const auto& [name, member] : members_) {
      const size_t slash = name.find('/');
      if (slash == std::string::npos) continue;
      const std::string rest = name.substr(slash + 1);
      if (rest == "constants.pkl")
        fail(where_ + ": expected a state_dict, found a TorchScript program; save model.state_dict()");
      if (rest == "byteorder" && zip_.read(*member, 64) != "little")
        fail(where_ + ": expected little-endian storages, found others; save the file on such a machine");
      if (rest != "data.pkl") continue;
      if (!prefix.empty()) fail(where_ + ": expected one data.pkl, found two; the file is damaged");
      prefix = name.substr(0, slash + 1);
    }
    if (prefix.empty())
      fail(where_ + ": expected a member NAME/data.pkl, found none; it is a zip, but not torch.save's");
    return prefix;
  }

  const PickleValue& state_dict(PthFile& file) const {
    const PickleValue& root = pickle_->root();
    if (root.kind != Kind::dict)
      fail(fmt::format("{}: expected a state_dict (a dict), found {}; save model.state_dict()", where_,
                       name_of(root.kind)));
    const PickleValue* inner = nullptr;
    for (size_t i = 0; i + 1 < root.items.size(); i += 2) {
      const PickleValue &key = at(root.items[i]), &value = at(root.items[i + 1]);
      const bool wraps =
          key.kind == Kind::text && value.kind == Kind::dict &&
          std::find(std::begin(wrapper_keys), std::end(wrapper_keys), key.text) != std::end(wrapper_keys);
      if (wraps && inner)
        fail(where_ + ": expected one of the keys model, state_dict and model_state_dict, found several");
      if (wraps) inner = &value;
    }
    if (!inner) return root;
    for (size_t i = 0; i + 1 < root.items.size(); i += 2)
      if (const PickleValue& key = at(root.items[i]);
          &at(root.items[i + 1]) != inner && key.kind == Kind::text)
        file.ignored.push_back(key.text);
    return *inner;
  }

  static std::string stripped(std::string_view name) {
    bool again = true;
    while (again) {
      again = false;
      for (const std::string_view prefix : {"module.", "_orig_mod."})
        if (name.starts_with(prefix)) name.remove_prefix(prefix.size()), again = true;
    }
    return std::string(name);
  }

  /// The places in a tuple of at least `least` items.
  const std::vector<uint32_t>& tuple(const PickleValue& value, size_t least, const std::string& where,
                                     const char* what) const {
    if (value.kind != Kind::tuple || value.items.size() < least)
      fail(fmt::format("{}: {}: expected a tuple of {} or more, found {} of {}; the file is damaged", where,
                       what, least, name_of(value.kind), value.items.size()));
    return value.items;
  }

  std::vector<int64_t> sizes(const PickleValue& value, const std::string& where, const char* what) const {
    std::vector<int64_t> numbers;
    for (const uint32_t place : tuple(value, 0, where, what)) {
      const PickleValue& n = at(place);
      if (n.kind != Kind::integer || n.integer < 0 || numbers.size() == max_axes)
        fail(fmt::format("{}: {}: expected at most {} whole numbers of at least 0, found {}", where, what,
                         max_axes, n.kind == Kind::integer ? std::to_string(n.integer) : name_of(n.kind)));
      numbers.push_back(n.integer);
    }
    return numbers;
  }

  HostArray tensor(const PickleValue& made, const std::string& where) {
    const PickleValue* call = &made;
    if (at(call->items[0]).text == "torch._utils._rebuild_parameter")
      call = &at(tuple(at(call->items[1]), 1, where, "parameter")[0]);
    if (call->kind != Kind::call || at(call->items[0]).text != "torch._utils._rebuild_tensor_v2")
      fail(where + ": expected a tensor, found something else; the file is damaged");
    const std::vector<uint32_t>& parts = tuple(at(call->items[1]), 4, where, "tensor");
    const StorageType* type = nullptr;
    const std::string& bytes = storage(at(parts[0]), where, type);
    const uint64_t elements = bytes.size() / type->bytes;
    const PickleValue& offset = at(parts[1]);
    if (offset.kind != Kind::integer || offset.integer < 0)
      fail(where + ": offset: expected a whole number of at least 0, found something else");
    const std::vector<int64_t> shape = sizes(at(parts[2]), where, "shape"),
                               strides = sizes(at(parts[3]), where, "strides");
    if (shape.size() != strides.size())
      fail(fmt::format("{}: expected a stride for each axis, found shape {} and strides {}", where,
                       shape_text(shape), shape_text(strides)));
    const uint64_t count = uint64_t(checked_count(shape, type->dtype, where));
    if (count > left_ / size_of(type->dtype))
      fail(fmt::format("{}: expected tensors of at most {} more bytes, found {} of {}", where, left_,
                       shape_text(shape), name_of(type->dtype)));
    left_ -= count * size_of(type->dtype);
    int64_t last = offset.integer;
    bool overflow = false;
    for (size_t i = 0; count > 0 && i < shape.size(); i++) {
      int64_t reach;
      overflow |= __builtin_mul_overflow(shape[i] - 1, strides[i], &reach) ||
                  __builtin_add_overflow(last, reach, &last);
    }
    if (count > 0 && (overflow || uint64_t(last) >= elements))
      fail(fmt::format("{}: expected elements inside a storage of {}, found shape {}, strides {}, offset {}",
                       where, elements, shape_text(shape), shape_text(strides), offset.integer));
    HostArray array(type->dtype, shape);
    if (count > 0) gather(bytes.data() + size_t(offset.integer) * type->bytes, *type, strides, array);
    return array;
  }

  /// Walks all indices in row-major order, the last axis fastest.
  static void gather(const char* first, const StorageType& type, const std::vector<int64_t>& strides,
                     HostArray& array) {
    const size_t axes = strides.size(), to_bytes = size_of(array.dtype);
    std::vector<int64_t> index(axes, 0);
    int64_t element = 0;
    for (std::byte* to = array.bytes.data(); to != array.bytes.data() + array.bytes.size(); to += to_bytes) {
      copy_element(first + element * int64_t(type.bytes), type.encoding, type.bytes, to);
      for (size_t i = axes; i-- > 0;) {
        if (array.shape[i] == 1) continue;  // its stride says nothing, and may be anything
        element += strides[i];
        if (++index[i] < array.shape[i]) break;
        element -= strides[i] * array.shape[i];
        index[i] = 0;
      }
    }
  }

  /// The bytes of the storage a persistent id names; several tensors may share one.
  const std::string& storage(const PickleValue& value, const std::string& where, const StorageType*& type) {
    if (value.kind != Kind::persistent)
      fail(fmt::format("{}: storage: expected a persistent id, found {}", where, name_of(value.kind)));
    const std::vector<uint32_t>& id = tuple(at(value.items[0]), 5, where, "storage");
    const PickleValue &tag = at(id[0]), &kind = at(id[1]), &key = at(id[2]), &count = at(id[4]);
    if (tag.kind != Kind::text || tag.text != "storage" || kind.kind != Kind::global ||
        key.kind != Kind::text || count.kind != Kind::integer || count.integer < 0)
      fail(where + ": expected ('storage', type, key, device, count), found something else");
    for (const StorageType& t : storage_types)
      if (t.name == kind.text) type = &t;
    if (!type) fail(fmt::format("{}: expected a storage type, found {}", where, kind.text));
    const std::string name = prefix_ + "data/" + key.text;
    const auto member = members_.find(name);
    if (member == members_.end())
      fail(fmt::format("{}: expected its elements in the member {}, found none", where, json_quoted(name)));
    if (uint64_t(count.integer) > member->second->size / type->bytes ||
        uint64_t(count.integer) * type->bytes != member->second->size)
      fail(fmt::format("{}: storage {}: expected {} elements of {} bytes, found {} bytes", where,
                       json_quoted(name), count.integer, type->bytes, member->second->size));
    const auto [place, fresh] = storages_.try_emplace(name);
    if (fresh) {
      place->second = zip_.read(*member->second, storage_left_);
      storage_left_ -= place->second.size();
    }
    return place->second;
  }

  std::string where_, prefix_;
  ZipReader zip_;
  uint64_t storage_left_, left_;
  std::map<std::string, const ZipMember*> members_;
  std::map<std::string, std::string> storages_;
  std::optional<Pickle> pickle_;
};

/// Before torch 1.6 a file was a row of pickles, the first of them a magic number.
void refuse_old_format(const std::string& path) {
  const InputFile file(path);
  constexpr std::string_view magic = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
  std::string start(magic.size(), '\0');
  if (file.size() < start.size()) return;
  file.read_at(0, start.data(), start.size());
  if (start == magic)
    fail(fmt::format(
        "read_pth: {}: expected a zip (torch 1.6 and later), found the older format; convert it in Python: "
        "torch.save(torch.load(path, map_location='cpu', weights_only=True), path)",
        path));
}

}  // namespace

PthFile read_pth(const std::string& path, uint64_t max_bytes) {
  refuse_old_format(path);
  return PthReader(path, max_bytes).read();
}

}  // namespace eigentrace
