# memory.pl: running out of memory, wherever it happens, is an error that leaves no trace, and the server stays up.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Judge;
use Session;
use Test::More;

plan skip_all => 'another library is preloaded already' if $ENV{LD_PRELOAD};
chomp(my $include = `pg_config --includedir-server`);
my $library = PostgreSQL::Test::Utils::tempdir() . '/failing_malloc.so';
system('cc', '-shared', '-fPIC', '-O1', "-I$include", '-o', $library, "$FindBin::RealBin/failing_malloc.c") == 0
  or plan skip_all => 'no failing malloc for this C library';

my $node = PostgreSQL::Test::Cluster->new('memory');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\nautovacuum = off");
{
	local $ENV{LD_PRELOAD} = $library;
	$node->start;
}
$node->safe_psql('postgres', qq{
	CREATE EXTENSION kavach;
	CREATE FUNCTION fail_malloc(bigint, bigint) RETURNS bigint LANGUAGE c AS '$library';
	CREATE FUNCTION mallocs_seen() RETURNS bigint LANGUAGE c AS '$library';
	INSERT INTO kavach.agent (agent_id, user_id) SELECT 'agt_' || n, 'user_' || n % 50 FROM generate_series(0, 799) n;
	INSERT INTO kavach.permission (agent_id, resource, actions) SELECT agent_id, '*', '{run}' FROM kavach.agent;
	SELECT kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_per_hour": 1000000}')});
Judge::install($node);
my $started = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time(), pid FROM pg_stat_activity WHERE backend_type = \'checkpointer\'');

# Savepoints, within which calls need more and more room; what fails rolls back what was called before.
my $work = q{
	BEGIN;
	SELECT count(code) FROM generate_series(0, 19) n, LATERAL kavach_authorize('agt_' || n, 'run', 'x', tokens_cost => 1, request_id => txid_current() || ' ' || n);
	SAVEPOINT s;
	SELECT count(code) FROM generate_series(20, 799) n, LATERAL kavach_authorize('agt_' || n, 'run', 'x', tokens_cost => 1);
	SELECT count(kavach_record_usage(agent_id, 0, audit_id => id)) FROM kavach.audit_log WHERE xmin::text = txid_current()::text LIMIT 10;
	ROLLBACK TO s;
	SELECT count(code) FROM generate_series(0, 29) n, LATERAL kavach_authorize('agt_' || n, 'run', 'x', tokens_cost => 1);
	COMMIT;};
my $one = Session->new($node);

# Every allocation of that size in a round, or of so many up to some step.
sub fail_each
{
	my ($size, $step) = @_;
	my $failed = 0;
	$one->query($work);
	$one->query("SELECT fail_malloc(0, $size)");
	$one->query($work);
	my $most = $one->query('SELECT mallocs_seen()');
	for (my $n = 1; $n <= $most; $n += $step)
	{
		my $session = $n % 2 ? Session->new($node) : $one;    # one that knows nothing yet, and one that does
		$session->query("SELECT fail_malloc($n, $size)");
		my $answer = $session->query($work);
		$failed++ if $answer =~ /53200/;
		BAIL_OUT("allocation $n: $answer") if $answer =~ /server closed|FATAL|PANIC/;
		$session->query('ROLLBACK; SELECT fail_malloc(0, 0)');
		$session->quit if $n % 2;
	}
	cmp_ok($failed, '>', 0, "of $most allocations of $size bytes or more $failed were made to fail");
	return;
}
fail_each(40000, 1);
fail_each(1, 1201);
is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time(), pid FROM pg_stat_activity WHERE backend_type = \'checkpointer\''), $started, 'and none took the server down');
is(Judge::faults($node), '', 'counters, budgets and reports agree with the ledger');
unlike($one->query($work), qr/ERROR/, 'the session that has failed so often goes on');
is($node->safe_psql('postgres', 'SELECT count(*) > 1000, min(pins), max(pins) FROM kavach.counters'), 't|0|0', 'hundreds of subjects are counted, and none is held');
$one->quit;
$node->stop;
done_testing();
