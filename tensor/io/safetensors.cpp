#include "tensor/io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "tensor/io/json_writer.h"

namespace eigentrace {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the format is little-endian, and so are the machines we build for");

constexpr uint64_t max_header = 100'000'000;  // the format's own limit
constexpr char checksum_key[] = "\"crc32\":\"";
constexpr char checksum_zero[] = "00000000";

/// Bytes of one element; 0 for a dtype the format does not have.
uint64_t element_size(const std::string& dtype) {
  static const std::map<std::string, uint64_t> sizes = {
      {"F64", 8},  {"F32", 4}, {"F16", 2},     {"BF16", 2},   {"I64", 8}, {"I32", 4},
      {"I16", 2},  {"I8", 1},  {"U64", 8},     {"U32", 4},    {"U16", 2}, {"U8", 1},
      {"BOOL", 1}, {"C64", 8}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

const char* format_dtype(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "F32";
    case DType::f64:
      return "F64";
    case DType::i32:
      return "I32";
    case DType::i64:
      return "I64";
    case DType::u8:
      return "U8";
    case DType::bf16:
      break;  // step memory only
  }
  fail("write_safetensors: dtype: expected one of f32, f64, i32, i64, u8");
}

/// Takes the header's JSON event by event: nothing but the shape the format prescribes gets through, names
/// cannot repeat (a DOM would silently keep one of them), and a hostile header costs no more memory than its
/// own size.
class HeaderParser : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderParser(std::map<std::string, SafetensorsEntry>& entries, std::map<std::string, std::string>& metadata)
      : entries_(entries), metadata_(metadata) {}
  std::string error;

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("true or false"); }
  bool number_float(double, const std::string& text) override { return unexpected("the number " + text); }
  bool binary(binary_t&) override { return unexpected("binary data"); }
  bool number_integer(int64_t number) override { return unexpected(fmt::format("the number {}", number)); }

  bool number_unsigned(uint64_t number) override {
    if (place_ == Place::shape) {
      if (number > uint64_t(INT64_MAX)) return wrong("dimensions below 2^63", fmt::format("{}", number));
      entry_->shape.push_back(int64_t(number));
      return true;
    }
    if (place_ == Place::offsets) {
      if (offsets_ == 2) return wrong("two data_offsets", "more");
      (offsets_++ == 0 ? entry_->begin : entry_->end) = number;
      return true;
    }
    return unexpected(fmt::format("the number {}", number));
  }

  bool string(std::string& text) override {
    if (place_ == Place::metadata) {
      metadata_[key_] = text;
      return true;
    }
    if (place_ != Place::entry || key_ != "dtype") return unexpected("the string " + json_quoted(text));
    entry_->dtype = text;
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::start) {
      place_ = Place::top;
    } else if (place_ == Place::top && name_ == "__metadata__") {
      place_ = Place::metadata;
    } else if (place_ == Place::top) {
      place_ = Place::entry;
      entry_ = &entries_[name_];
      seen_dtype_ = seen_shape_ = seen_offsets_ = false;
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool key(std::string& text) override {
    if (place_ == Place::top) {
      name_ = text;
      if (entries_.count(text) || (text == "__metadata__" && seen_metadata_))
        return wrong("each name once", "it twice");
      seen_metadata_ |= text == "__metadata__";
      return true;
    }
    key_ = text;
    if (place_ == Place::metadata) {
      if (metadata_.count(text)) return wrong("each metadata key once", json_quoted(text) + " twice");
      return true;
    }
    bool* seen = text == "dtype"          ? &seen_dtype_
                 : text == "shape"        ? &seen_shape_
                 : text == "data_offsets" ? &seen_offsets_
                                          : nullptr;
    if (!seen) return wrong("the keys dtype, shape and data_offsets", json_quoted(text));
    if (*seen) return wrong("each key once", json_quoted(text) + " twice");
    return *seen = true;
  }

  bool end_object() override {
    if (place_ == Place::entry && !(seen_dtype_ && seen_shape_ && seen_offsets_))
      return wrong("dtype, shape and data_offsets", "not all of them");
    place_ = place_ == Place::top ? Place::start : Place::top;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::entry || key_ == "dtype") return unexpected("an array");
    place_ = key_ == "shape" ? Place::shape : Place::offsets;
    offsets_ = 0;
    return true;
  }

  bool end_array() override {
    if (place_ == Place::offsets && offsets_ != 2)
      return wrong("two data_offsets", fmt::format("{}", offsets_));
    place_ = Place::entry;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& cause) override {
    std::string what = cause.what();  // "[json.exception.parse_error.101] parse error at …: the reason"
    const size_t reason = what.find("] ");
    error = fmt::format("header: expected UTF-8 JSON, found at its byte {}: {}", position,
                        reason == std::string::npos ? what : what.substr(reason + 2));
    return false;
  }

 private:
  enum class Place { start, top, metadata, entry, shape, offsets };
  bool wrong(const std::string& expected, const std::string& found) {
    error = fmt::format("header: {}: expected {}, found {}", name_.empty() ? "top level" : json_quoted(name_),
                        expected, found);
    return false;
  }
  bool unexpected(const std::string& what) {
    switch (place_) {
      case Place::start:
        return wrong("an object", what);
      case Place::top:
        return wrong("an object with dtype, shape and data_offsets", what);
      case Place::metadata:
        return wrong("strings as metadata", what);
      case Place::entry:
        return wrong(key_ == "dtype" ? "a string as dtype" : "an array as " + key_, what);
      case Place::shape:
        return wrong("whole numbers of at least 0 as shape", what);
      case Place::offsets:
        return wrong("whole numbers of at least 0 as data_offsets", what);
    }
    return false;
  }
  std::map<std::string, SafetensorsEntry>& entries_;
  std::map<std::string, std::string>& metadata_;
  Place place_ = Place::start;
  std::string name_, key_;
  SafetensorsEntry* entry_ = nullptr;
  int offsets_ = 0;
  bool seen_metadata_ = false, seen_dtype_ = false, seen_shape_ = false, seen_offsets_ = false;
};

void check_entry(const std::string& path, const std::string& name, const SafetensorsEntry& entry,
                 uint64_t data_bytes) {
  auto wrong = [&](const std::string& text) {
    fail(fmt::format("safetensors: {}: {}: {}", path, json_quoted(name), text));
  };
  const uint64_t element = element_size(entry.dtype);
  if (element == 0)
    wrong(fmt::format("dtype: expected one of the format's, found {}", json_quoted(entry.dtype)));
  if (entry.begin > entry.end || entry.end > data_bytes)
    wrong(
        fmt::format("data_offsets: expected begin ≤ end ≤ {}, the bytes of data in the file; found [{}, {}]; "
                    "the file is cut or damaged",
                    data_bytes, entry.begin, entry.end));
  uint64_t count = 1;
  bool overflow = false, empty = false;
  for (const int64_t dim : entry.shape) {
    empty |= dim == 0;
    overflow |= __builtin_mul_overflow(count, uint64_t(dim == 0 ? 1 : dim), &count);
  }
  uint64_t bytes = 0;
  overflow |= __builtin_mul_overflow(count, element, &bytes);
  if (overflow)
    wrong(fmt::format("shape: expected a size below 2^64 bytes, found {}", shape_text(entry.shape)));
  if (empty) bytes = 0;
  if (bytes != entry.end - entry.begin)
    wrong(fmt::format("data_offsets: expected {} bytes ({} of {}), found [{}, {}], which is {}", bytes,
                      shape_text(entry.shape), entry.dtype, entry.begin, entry.end, entry.end - entry.begin));
}

void check_cover(const std::string& path, const std::map<std::string, SafetensorsEntry>& entries,
                 uint64_t data_bytes) {
  std::vector<std::pair<const SafetensorsEntry*, const std::string*>> order;
  for (const auto& [name, entry] : entries) order.emplace_back(&entry, &name);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first->begin, a.first->end) < std::pair(b.first->begin, b.first->end);
  });
  uint64_t at = 0;
  for (const auto& [entry, name] : order) {
    if (entry->begin != at)
      fail(fmt::format(
          "safetensors: {}: {}: data_offsets: expected to begin at {}, where the array before ends; found {} "
          "({})",
          path, json_quoted(*name), at, entry->begin, entry->begin < at ? "an overlap" : "a gap"));
    at = entry->end;
  }
  if (at != data_bytes)
    fail(fmt::format(
        "safetensors: {}: data: expected {} bytes after the header, found {}; the file is damaged", path, at,
        data_bytes));
}

/// IEEE half to float, exact.
float widen_f16(uint16_t half) {
  const uint32_t sign = uint32_t(half >> 15) << 31, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | fraction << 13);
  if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = float(fraction) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

}  // namespace

SafetensorsReader::SafetensorsReader(const std::string& path) : file_(path) {
  if (file_.size() < 8)
    fail(fmt::format(
        "safetensors: {}: expected at least 8 bytes, found {}; the file is cut or of another format", path,
        file_.size()));
  uint64_t length;
  file_.read_at(0, &length, 8);
  if (length > max_header)
    fail(
        fmt::format("safetensors: {}: header length: expected at most {} bytes, found {}; the file is of "
                    "another format or damaged",
                    path, max_header, length));
  if (length > file_.size() - 8)
    fail(
        fmt::format("safetensors: {}: header length: expected at most the {} bytes that follow, found {}; "
                    "the file is cut or of another format",
                    path, file_.size() - 8, length));
  header_.resize(length);
  file_.read_at(8, header_.data(), length);
  if (header_.empty() || header_[0] != '{')
    fail(fmt::format(
        "safetensors: {}: header: expected JSON that starts with {{; the file is of another format", path));
  HeaderParser parser(entries_, metadata_);
  if (!nlohmann::json::sax_parse(header_, &parser))
    fail(fmt::format("safetensors: {}: {}", path,
                     parser.error.empty() ? "header: expected JSON" : parser.error));
  const uint64_t data_bytes = file_.size() - 8 - length;
  for (const auto& [name, entry] : entries_) check_entry(path, name, entry, data_bytes);
  check_cover(path, entries_, data_bytes);
}

HostArray SafetensorsReader::read(const std::string& name) const { return read_any(name, false); }
HostArray SafetensorsReader::read_widened(const std::string& name) const { return read_any(name, true); }

HostArray SafetensorsReader::read_any(const std::string& name, bool widen) const {
  const auto found = entries_.find(name);
  if (found == entries_.end())
    fail(fmt::format("safetensors: {}: expected an array {}, found none of that name among {}", file_.path(),
                     json_quoted(name), entries_.size()));
  const SafetensorsEntry& entry = found->second;
  const uint64_t at = 8 + header_.size() + entry.begin;
  static const std::map<std::string, DType> types = {{"F32", DType::f32}, {"F64", DType::f64},
                                                     {"I32", DType::i32}, {"I64", DType::i64},
                                                     {"U8", DType::u8},   {"BOOL", DType::u8}};
  if (const auto type = types.find(entry.dtype); type != types.end()) {
    HostArray array(type->second, entry.shape);
    file_.read_at(at, array.bytes.data(), array.bytes.size());
    if (entry.dtype == "BOOL")
      for (uint8_t& value : array.as<uint8_t>()) value = value != 0;
    return array;
  }
  const bool f16 = entry.dtype == "F16";
  if (!f16 && entry.dtype != "BF16")
    fail(
        fmt::format("safetensors: {}: {}: dtype: expected F32, F64, I32, I64, U8, BOOL, F16 or BF16, found "
                    "{}; convert the file first",
                    file_.path(), json_quoted(name), entry.dtype));
  if (!widen)
    fail(
        fmt::format("safetensors: {}: {}: dtype: expected one that is stored as it is, found {}; ask for it "
                    "widened to f32",
                    file_.path(), json_quoted(name), entry.dtype));
  HostArray array(DType::f32, entry.shape);
  std::vector<uint16_t> halves(size_t(array.count()));
  file_.read_at(at, halves.data(), halves.size() * 2);
  float* out = array.as<float>().data();
  for (size_t i = 0; i < halves.size(); i++)
    out[i] = f16 ? widen_f16(halves[i]) : std::bit_cast<float>(uint32_t(halves[i]) << 16);
  return array;
}

void SafetensorsReader::verify_checksum() const {
  // Inside strings quotes are escaped and arrays are objects, so this can only be the metadata's key.
  std::string header = header_;
  const size_t at = header.find(checksum_key);
  const auto found = metadata_.find("crc32");
  if (at == std::string::npos || found == metadata_.end() || found->second.size() != 8)
    fail(
        fmt::format("safetensors: {}: metadata: expected a checksum under crc32, found none; the file was "
                    "not written by eigentrace or is damaged",
                    file_.path()));
  header.replace(at + sizeof checksum_key - 1, 8, checksum_zero);
  uint32_t crc = crc32(header.data(), header.size());
  std::vector<char> block(size_t(1) << 20);
  for (uint64_t offset = 8 + header.size(); offset < file_.size(); offset += block.size()) {
    const size_t n = size_t(std::min<uint64_t>(block.size(), file_.size() - offset));
    file_.read_at(offset, block.data(), n);
    crc = crc32(block.data(), n, crc);
  }
  if (const std::string now = fmt::format("{:08x}", crc); now != found->second)
    fail(
        fmt::format("safetensors: {}: checksum: expected {}, found {}; the file is damaged, use an older one",
                    file_.path(), found->second, now));
}

void write_safetensors(const std::string& path, const SafetensorsArrays& arrays,
                       std::map<std::string, std::string> metadata) {
  std::vector<const std::pair<std::string, HostView>*> order;
  for (const auto& array : arrays) order.push_back(&array);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    const size_t wide_a = size_of(a->second.dtype), wide_b = size_of(b->second.dtype);
    return wide_a != wide_b ? wide_a > wide_b : a->first < b->first;
  });
  if (!metadata.emplace("crc32", checksum_zero).second)
    fail(fmt::format(
        "write_safetensors: {}: metadata: expected no key crc32 (it is the file's checksum), found one",
        path));

  JsonWriter json;
  json.begin_object().key("__metadata__").begin_object();
  for (const auto& [key, text] : metadata) {
    if (!is_utf8(key) || !is_utf8(text))
      fail(fmt::format("write_safetensors: {}: metadata: expected UTF-8, found other bytes under {}", path,
                       json_quoted(key)));
    json.field(key, text);
  }
  json.end_object();
  uint64_t bytes = 0;
  for (size_t i = 0; i < order.size(); i++) {
    const auto& [name, view] = *order[i];
    if (name.empty() || name == "__metadata__" || !is_utf8(name))
      fail(fmt::format("write_safetensors: {}: name: expected UTF-8 other than __metadata__, found {}", path,
                       json_quoted(name)));
    const size_t expected =
        size_t(checked_count(view.shape, view.dtype, "write_safetensors")) * size_of(view.dtype);
    if (view.bytes.size() != expected)
      fail(fmt::format("write_safetensors: {}: {}: expected {} bytes ({} of {}), found {}", path,
                       json_quoted(name), expected, shape_text(view.shape), name_of(view.dtype),
                       view.bytes.size()));
    json.key(name).begin_object().field("dtype", format_dtype(view.dtype)).key("shape").values(view.shape);
    json.key("data_offsets").values(std::vector<uint64_t>{bytes, bytes + view.bytes.size()}).end_object();
    bytes += view.bytes.size();
  }
  json.end_object();
  std::vector<const std::string*> names;
  for (const auto* array : order) names.push_back(&array->first);
  std::sort(names.begin(), names.end(), [](const auto* a, const auto* b) { return *a < *b; });
  for (size_t i = 1; i < names.size(); i++)
    if (*names[i] == *names[i - 1])
      fail(fmt::format("write_safetensors: {}: name: expected each once, found {} twice", path,
                       json_quoted(*names[i])));

  std::string header = json.text();
  header.append((8 - header.size() % 8) % 8, ' ');
  if (header.size() > max_header)
    fail(fmt::format(
        "write_safetensors: {}: header: expected at most {} bytes, found {}; write fewer or shorter names",
        path, max_header, header.size()));
  uint32_t crc = crc32(header.data(), header.size());
  for (const auto* array : order) crc = crc32(array->second.bytes.data(), array->second.bytes.size(), crc);
  header.replace(header.find(checksum_key) + sizeof checksum_key - 1, 8, fmt::format("{:08x}", crc));

  const uint64_t length = header.size();
  write_atomically(
      path,
      [&](FileWriter& file) {
        file.write(&length, 8);
        file.write(header);
        for (const auto* array : order) file.write(array->second.bytes);
      },
      8 + length + bytes);
}

}  // namespace eigentrace
