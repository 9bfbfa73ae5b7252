// The closing line of a test run, in a form that scripts read: "123 passed, 0 failed, 4 skipped".
#include <doctest/doctest.h>

#include <cstdio>

namespace {

struct ClosingLine : doctest::IReporter {
  explicit ClosingLine(const doctest::ContextOptions&) {}
  void test_run_end(const doctest::TestRunStats& run) override {
    const unsigned ran = run.numTestCasesPassingFilters;
    std::printf("%u passed, %u failed, %u skipped\n", ran - run.numTestCasesFailed, run.numTestCasesFailed,
                run.numTestCases - ran);
  }
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_case_start(const doctest::TestCaseData&) override {}
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};

}  // namespace

REGISTER_LISTENER("closing line", 1, ClosingLine);
