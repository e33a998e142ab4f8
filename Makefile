# kavach: build, install, check and demo.
#
#   make && make install     build with PGXS against $(PG_CONFIG) and install
#   make check [KIND=pgtap]  all tests, or those of one kind, on a private server
#   make lint [PART=layout]  layout, warnings, static analysis, the SQL checks of pgspot
#   make demo [TRACE=FILE]   the story on screen, on a private server
#   make demo-stop           stop that server and remove its folder
#   make soak [ROUNDS=n SEED=s SECONDS=t]  load, cancels and crashes, judged from outside
#   make fuzz [ROUNDS=n SEED=s SECONDS=t SQLSMITH=1]  random calls of every function
#   make valgrind [KIND=k]   the tests on a server under valgrind
#   make sanitize [KIND=k]   the tests with kavach compiled with ASan and UBSan
#   make bench [PART=p]      what a call costs beside an INSERT, as ratios: speed, contention,
#                            many, settle, cold, growth, instructions or quick (bench/run.sh)
#
# These install through apt what they miss (scripts/setup.sh), so they must work
# where there is no pg_config yet: they never read PGXS themselves.

PG_CONFIG ?= pg_config
export PG_CONFIG

SCRIPTED = check lint demo demo-stop soak fuzz valgrind sanitize bench

ifneq (,$(filter $(SCRIPTED),$(MAKECMDGOALS)))

.PHONY: $(MAKECMDGOALS)

check:
	@test/run $(KIND)

lint:
	@FIX='$(FIX)' test/lint/run $(PART)

demo:
	@TRACE='$(TRACE)' demo/run.sh

demo-stop:
	@demo/run.sh stop

soak:
	@test/soak/run '$(ROUNDS)' '$(SEED)' '$(SECONDS)'

fuzz:
	@SQLSMITH='$(SQLSMITH)' test/fuzz/run '$(ROUNDS)' '$(SEED)' '$(SECONDS)'

valgrind sanitize:
	@ROUNDS='$(ROUNDS)' SEED='$(SEED)' DURATION='$(SECONDS)' test/memory/run $@ $(KIND)

bench:
	@bench/run.sh '$(PART)'

# Goals named beside these (make clean check) go to a make of their own.
$(filter-out $(SCRIPTED),$(MAKECMDGOALS)):
	@$(MAKE) --no-print-directory $@

else

EXTENSION = kavach
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" kavach.control)

MODULE_big = kavach
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))
PG_CPPFLAGS = -I$(srcdir)/src
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter

# Names of ours are bound to ours, whatever else is loaded.
SHLIB_EXPORTS = src/exports.txt
SHLIB_LINK += $(if $(filter darwin,$(PORTNAME)),,-Wl,-Bsymbolic)

# The install script is these parts, in this order.
SQL_PARTS = \
	sql/schema.sql \
	sql/agent.sql \
	sql/permission.sql \
	sql/ledger.sql \
	sql/counter.sql \
	sql/policy.sql \
	sql/batch.sql \
	sql/authorize.sql \
	sql/report.sql \
	sql/export.sql \
	sql/role.sql

DATA_built = kavach--$(EXTVERSION).sql

# The steps of ALTER EXTENSION UPDATE, from each version to the next.
DATA = $(sort $(wildcard sql/kavach--*--*.sql))

# For `make installcheck` on a server of your own; `make check` brings its own.
REGRESS = $(basename $(notdir $(sort $(wildcard test/sql/*.sql))))
REGRESS_OPTS = --inputdir=test --load-extension=kavach
ISOLATION = $(basename $(notdir $(sort $(wildcard test/specs/*.spec))))
ISOLATION_OPTS = --inputdir=test --outputdir=. --load-extension=kavach

EXTRA_CLEAN = kavach--*.sql src/*.bc src/*/*.bc

# Bitcode would let the JIT inline our functions, which gains nothing here, and
# needs the very clang that PostgreSQL was built with.
override with_llvm = no

PGXS := $(shell $(PG_CONFIG) --pgxs)
# Debian has PGXS in the client's package, without the headers.
ifeq (,$(and $(wildcard $(PGXS)),$(wildcard $(shell $(PG_CONFIG) --includedir-server)/postgres.h)))
$(error PostgreSQL's server headers are missing: run scripts/setup.sh, or set PG_CONFIG)
endif
include $(PGXS)

$(OBJS): $(wildcard src/*.h src/*/*.h) Makefile

$(DATA_built): $(SQL_PARTS) kavach.control Makefile
	cat $(SQL_PARTS) > $@

endif
