#include "tensor/io/pickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "tensor/error.h"
#include "tensor/io/json_writer.h"

namespace eigentrace {
namespace {

struct Opcode {
  uint8_t code;
  const char* name;
};

enum : uint8_t {
  mark = '(',
  stop = '.',
  binint = 'J',
  binint1 = 'K',
  binint2 = 'M',
  none = 'N',
  binpersid = 'Q',
  reduce = 'R',
  binunicode = 'X',
  append = 'a',
  build = 'b',
  global = 'c',
  appends = 'e',
  binget = 'h',
  long_binget = 'j',
  empty_list = ']',
  binput = 'q',
  long_binput = 'r',
  setitem = 's',
  tuple = 't',
  empty_tuple = ')',
  setitems = 'u',
  empty_dict = '}',
  binfloat = 'G',
  proto = 0x80,
  tuple1 = 0x85,
  tuple2 = 0x86,
  tuple3 = 0x87,
  newtrue = 0x88,
  newfalse = 0x89,
  long1 = 0x8A,
  short_binunicode = 0x8C,
  stack_global = 0x93,
  memoize = 0x94,
  frame = 0x95,
};

// All of Python's opcodes, so that an error can name one that is not read here.
constexpr Opcode opcodes[] = {{'(', "MARK"},
                              {'.', "STOP"},
                              {'0', "POP"},
                              {'1', "POP_MARK"},
                              {'2', "DUP"},
                              {'F', "FLOAT"},
                              {'I', "INT"},
                              {'J', "BININT"},
                              {'K', "BININT1"},
                              {'L', "LONG"},
                              {'M', "BININT2"},
                              {'N', "NONE"},
                              {'P', "PERSID"},
                              {'Q', "BINPERSID"},
                              {'R', "REDUCE"},
                              {'S', "STRING"},
                              {'T', "BINSTRING"},
                              {'U', "SHORT_BINSTRING"},
                              {'V', "UNICODE"},
                              {'X', "BINUNICODE"},
                              {'a', "APPEND"},
                              {'b', "BUILD"},
                              {'c', "GLOBAL"},
                              {'d', "DICT"},
                              {'}', "EMPTY_DICT"},
                              {'e', "APPENDS"},
                              {'g', "GET"},
                              {'h', "BINGET"},
                              {'i', "INST"},
                              {'j', "LONG_BINGET"},
                              {'l', "LIST"},
                              {']', "EMPTY_LIST"},
                              {'o', "OBJ"},
                              {'p', "PUT"},
                              {'q', "BINPUT"},
                              {'r', "LONG_BINPUT"},
                              {'s', "SETITEM"},
                              {'t', "TUPLE"},
                              {')', "EMPTY_TUPLE"},
                              {'u', "SETITEMS"},
                              {'G', "BINFLOAT"},
                              {'B', "BINBYTES"},
                              {'C', "SHORT_BINBYTES"},
                              {0x80, "PROTO"},
                              {0x81, "NEWOBJ"},
                              {0x82, "EXT1"},
                              {0x83, "EXT2"},
                              {0x84, "EXT4"},
                              {0x85, "TUPLE1"},
                              {0x86, "TUPLE2"},
                              {0x87, "TUPLE3"},
                              {0x88, "NEWTRUE"},
                              {0x89, "NEWFALSE"},
                              {0x8A, "LONG1"},
                              {0x8B, "LONG4"},
                              {0x8C, "SHORT_BINUNICODE"},
                              {0x8D, "BINUNICODE8"},
                              {0x8E, "BINBYTES8"},
                              {0x8F, "EMPTY_SET"},
                              {0x90, "ADDITEMS"},
                              {0x91, "FROZENSET"},
                              {0x92, "NEWOBJ_EX"},
                              {0x93, "STACK_GLOBAL"},
                              {0x94, "MEMOIZE"},
                              {0x95, "FRAME"},
                              {0x96, "BYTEARRAY8"},
                              {0x97, "NEXT_BUFFER"},
                              {0x98, "READONLY_BUFFER"}};

const char* opcode_name(uint8_t code) {
  for (const Opcode& o : opcodes)
    if (o.code == code) return o.name;
  return nullptr;
}

constexpr std::string_view ordered_dict = "collections.OrderedDict";

}  // namespace

const char* name_of(PickleValue::Kind kind) {
  constexpr const char* names[] = {"None", "bool", "int",    "float", "str",          "tuple",
                                   "list", "dict", "global", "call",  "persistent id"};
  return names[size_t(kind)];
}

Pickle::Pickle(std::string_view bytes, const std::string& where, std::span<const std::string_view> globals)
    : bytes_(bytes), where_(where), globals_(globals) {
  if (bytes.empty() || uint8_t(bytes[0]) != proto)
    fail(where + ": expected a pickle of protocol 2 or later, found something else; the file is damaged");
  run();
}

void Pickle::wrong(const std::string& text) const {
  fail(fmt::format("{}: offset {}: {}: {}", where_, opcode_at_, opcode_, text));
}

std::string_view Pickle::take(uint64_t bytes) {
  if (bytes > bytes_.size() - at_)
    wrong(fmt::format("expected {} more bytes, found {}; the file is cut or damaged", bytes,
                      bytes_.size() - at_));
  const std::string_view taken = bytes_.substr(at_, size_t(bytes));
  at_ += size_t(bytes);
  return taken;
}

uint64_t Pickle::number(int bytes) {
  uint64_t value = 0;
  int shift = 0;
  for (const char c : take(uint64_t(bytes))) value |= uint64_t(uint8_t(c)) << shift, shift += 8;
  return value;
}

std::string_view Pickle::line() {
  const size_t end = bytes_.find('\n', at_);
  if (end == std::string_view::npos) wrong("expected a line, found no end of one; the file is cut");
  const std::string_view text = take(end - at_);
  ++at_;
  return text;
}

std::string_view Pickle::text_of(uint64_t bytes) {
  const std::string_view text = take(bytes);
  if (!is_utf8(text)) wrong("expected UTF-8, found other bytes; the file is damaged");
  return text;
}

void Pickle::run() {
  while (true) {
    opcode_at_ = at_;
    opcode_ = "the end";
    const uint8_t code = uint8_t(take(1)[0]);
    opcode_ = opcode_name(code);
    if (!opcode_) opcode_ = "no opcode";
    if (code == stop) break;
    if (!containers(code) && !scalars(code) && !memo(code) && !objects(code))
      wrong(fmt::format(
          "expected an opcode of plain containers, numbers, texts and tensors, found 0x{:02x}; nothing else "
          "is read: save model.state_dict() alone",
          code));
  }
  root_ = pop();
  if (!stack_.empty() || !marks_.empty()) wrong("expected one value at the end, found more");
  if (at_ != bytes_.size())
    wrong(fmt::format("expected the end of the pickle, found {} more bytes", bytes_.size() - at_));
}

bool Pickle::scalars(uint8_t code) {
  switch (code) {
    case none:
      return push(Kind::none, 0), true;
    case newtrue:
      return push(Kind::boolean, 1), true;
    case newfalse:
      return push(Kind::boolean, 0), true;
    case binint:
      return push(Kind::integer, int32_t(uint32_t(number(4)))), true;
    case binint1:
      return push(Kind::integer, int64_t(number(1))), true;
    case binint2:
      return push(Kind::integer, int64_t(number(2))), true;
    case long1: {
      const int bytes = int(number(1));
      if (bytes > 8) wrong(fmt::format("expected an integer of at most 8 bytes, found {}", bytes));
      uint64_t value = number(bytes);
      if (bytes > 0 && bytes < 8 && value >> (8 * bytes - 1)) value |= ~uint64_t(0) << 8 * bytes;
      return push(Kind::integer, int64_t(value)), true;
    }
    case binfloat: {
      uint64_t bits = 0;  // the one big-endian number of the format
      for (const char c : take(8)) bits = bits << 8 | uint8_t(c);
      PickleValue value;
      value.kind = Kind::real;
      value.real = std::bit_cast<double>(bits);
      return push(std::move(value)), true;
    }
    case binunicode:
    case short_binunicode: {
      PickleValue value;
      value.kind = Kind::text;
      value.text = text_of(number(code == binunicode ? 4 : 1));
      return push(std::move(value)), true;
    }
    default:
      return false;
  }
}

bool Pickle::containers(uint8_t code) {
  switch (code) {
    case mark:
      return marks_.push_back(stack_.size()), true;
    case empty_dict:
      return push(Kind::dict, 0), true;
    case empty_list:
      return push(Kind::list, 0), true;
    case empty_tuple:
      return push(Kind::tuple, 0), true;
    case tuple:
      return push(Kind::tuple, pop_to_mark()), true;
    case tuple1:
    case tuple2:
    case tuple3:
      return push(Kind::tuple, pop_many(size_t(code - tuple1) + 1)), true;
    case append:
    case appends:
    case setitem:
    case setitems: {
      const bool dict = code == setitem || code == setitems;
      const std::vector<uint32_t> items = code == append    ? pop_many(1)
                                          : code == setitem ? pop_many(2)
                                                            : pop_to_mark();
      if (dict && items.size() % 2 != 0) wrong("expected a value for each key, found none for the last");
      PickleValue& into = top(dict ? Kind::dict : Kind::list);
      into.items.insert(into.items.end(), items.begin(), items.end());
      return true;
    }
    default:
      return false;
  }
}

bool Pickle::memo(uint8_t code) {
  switch (code) {
    case binput:
      return remember(number(1)), true;
    case long_binput:
      return remember(number(4)), true;
    case memoize:
      return remember(memo_.size()), true;
    case binget:
      return recall(number(1)), true;
    case long_binget:
      return recall(number(4)), true;
    default:
      return false;
  }
}

bool Pickle::objects(uint8_t code) {
  switch (code) {
    case proto:
      if (const uint64_t version = number(1); version < 2 || version > 5)
        wrong(fmt::format("expected protocol 2 to 5, found {}", version));
      return true;
    case frame: {
      const uint64_t bytes = number(8);
      if (bytes > bytes_.size() - at_)
        wrong(fmt::format("expected {} more bytes, found {}; the file is cut or damaged", bytes,
                          bytes_.size() - at_));
      return true;
    }
    case global: {
      const std::string_view module = line(), name = line();
      return push_global(module, name), true;
    }
    case stack_global: {
      const std::vector<uint32_t> names = pop_many(2);
      for (const uint32_t place : names)
        if (values_[place].kind != Kind::text)
          wrong(fmt::format("expected two texts, found {}", name_of(values_[place].kind)));
      return push_global(values_[names[0]].text, values_[names[1]].text), true;
    }
    case reduce:
      return call(), true;
    case binpersid:
      return push(Kind::persistent, pop_many(1)), true;
    case build:  // attributes of a dict, such as a state_dict's _metadata, say nothing about its tensors
      pop();
      top(Kind::dict);
      return true;
    default:
      return false;
  }
}

void Pickle::push(PickleValue value) {
  if (values_.size() >= max_values)
    wrong(fmt::format("expected at most {} values, found more; save model.state_dict() alone", max_values));
  stack_.push_back(uint32_t(values_.size()));
  values_.push_back(std::move(value));
}

void Pickle::push(Kind kind, int64_t integer) {
  PickleValue value;
  value.kind = kind;
  value.integer = integer;
  push(std::move(value));
}

void Pickle::push(Kind kind, std::vector<uint32_t> items) {
  PickleValue value;
  value.kind = kind;
  value.items = std::move(items);
  push(std::move(value));
}

void Pickle::push_global(std::string_view module, std::string_view name) {
  PickleValue value;
  value.kind = Kind::global;
  value.text = fmt::format("{}.{}", module, name);
  if (std::find(globals_.begin(), globals_.end(), value.text) == globals_.end())
    wrong(
        fmt::format("expected a global of tensors and dicts, found {}; code is never run: save "
                    "model.state_dict() alone",
                    json_quoted(value.text.substr(0, 120))));
  push(std::move(value));
}

void Pickle::call() {
  std::vector<uint32_t> parts = pop_many(2);
  const PickleValue &function = values_[parts[0]], &arguments = values_[parts[1]];
  if (function.kind != Kind::global || arguments.kind != Kind::tuple)
    wrong(fmt::format("expected a global and a tuple, found {} and {}", name_of(function.kind),
                      name_of(arguments.kind)));
  if (function.text != ordered_dict) return push(Kind::call, std::move(parts));
  if (!arguments.items.empty())
    wrong(fmt::format("{}: expected no arguments, found {}", ordered_dict, arguments.items.size()));
  push(Kind::dict, 0);
}

uint32_t Pickle::pop() { return pop_many(1)[0]; }

std::vector<uint32_t> Pickle::pop_many(size_t count) {
  const size_t floor = marks_.empty() ? 0 : marks_.back();
  if (count > stack_.size() - floor)
    wrong(fmt::format("expected {} values on the stack, found {}", count, stack_.size() - floor));
  std::vector<uint32_t> values(stack_.end() - ptrdiff_t(count), stack_.end());
  stack_.resize(stack_.size() - count);
  return values;
}

std::vector<uint32_t> Pickle::pop_to_mark() {
  if (marks_.empty()) wrong("expected a mark on the stack, found none");
  std::vector<uint32_t> values = pop_many(stack_.size() - marks_.back());
  marks_.pop_back();
  return values;
}

PickleValue& Pickle::top(Kind kind) {
  if (stack_.size() == (marks_.empty() ? 0 : marks_.back()))
    wrong("expected a value on the stack, found none");
  PickleValue& value = values_[stack_.back()];
  if (value.kind != kind) wrong(fmt::format("expected a {}, found {}", name_of(kind), name_of(value.kind)));
  return value;
}

void Pickle::remember(uint64_t place) {
  if (place >= max_values) wrong(fmt::format("expected a memo place below {}, found {}", max_values, place));
  if (stack_.empty()) wrong("expected a value on the stack, found none");
  memo_[place] = stack_.back();
}

void Pickle::recall(uint64_t place) {
  const auto found = memo_.find(place);
  if (found == memo_.end()) wrong(fmt::format("expected a memo place that was written, found {}", place));
  stack_.push_back(found->second);
}

}  // namespace eigentrace
