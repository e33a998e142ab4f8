# lookup.pl: requests and settlements are found in whatever partition they are, by its indexes, without those of other
# months being locked; and by a statement where there are no such indexes.
#
# Which way it was is told by the locks: a statement over the ledger locks it, and all its months.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('lookup');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\nmax_locks_per_transaction = 200");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
	SELECT kavach_create_months('2025-01-01', '2026-04-01')});
my $app = Session->new($node);

sub change { my ($sql) = @_; return $node->safe_psql('postgres', "SET kavach.allow_drop = on; $sql") }

sub at { my ($ts, $sql) = @_; return $app->query("SET kavach.clock = '$ts'; $sql") }

# A call, and what of it is found: the authorization by its request, it by its id, its settlement.
sub call   { my ($request) = @_; return "SELECT audit_id FROM kavach_authorize('agt_a', 'run', 'x', 10, request_id => '$request')" }
sub settle { my ($request) = @_; return "SELECT usage_id FROM kavach_record_usage('agt_a', 4, request_id => '$request')" }

# What a call locks, once the counters are there. In a transaction of its own, that is rolled back.
sub locks
{
	my ($ts, $sql, $locks) = @_;
	$app->query("SET kavach.clock = '$ts'; BEGIN; DO \$\$ BEGIN PERFORM FROM ($sql) c; END \$\$; ROLLBACK") for 1 .. 2;
	return $app->query("BEGIN; DO \$\$ BEGIN PERFORM FROM ($sql) c; END \$\$; SELECT $locks FROM pg_locks l WHERE pid = pg_backend_pid(); ROLLBACK");
}

sub partitions { return locks(@_, q{count(DISTINCT relation) FILTER (WHERE relation IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'kavach.audit_log'::regclass))}) }

# A statement locks the ledger as any SELECT does.
sub ok_way
{
	my ($way, $name, $ts, $sql) = @_;
	is(locks($ts, $sql, q{CASE count(*) FILTER (WHERE relation = 'kavach.audit_log'::regclass AND mode = 'AccessShareLock') WHEN 0 THEN 'straight' ELSE 'by statement' END}), $way, "$name: $way");
	return;
}

# ---- where it is ----

my $uuid = qr/^[0-9a-f-]{36}$/;
like(my $id = at('2026-02-28 23:59:59.9Z', call('turn')), $uuid, 'a call at the end of a month');
is(at('2026-03-01 00:00:00.1Z', call('turn')), $id, 'is repeated in the next');
like(my $usage = $app->query(settle('turn')), $uuid, 'and settled');
is($app->query(settle('turn')), $usage, 'again by its request');
is($app->query("SELECT usage_id FROM kavach_record_usage('agt_a', 4, '$id')"), $usage, 'and by its id');
is(at('2026-02-28 23:59:59.95Z', settle('turn')), $usage, 'also when the clock is back in the month before');
is($node->safe_psql('postgres', "SELECT count(*), sum(tokens_cost), count(DISTINCT tableoid) FROM kavach.audit_log WHERE request_id = 'turn'"), '2|4|2', 'once');

# Of two rows with one request_id, the later.
my $first = at('2026-01-05Z', call('twice'));
isnt(my $second = at('2026-03-08Z', call('twice')), $first, 'a request that is forgotten is a new one');
is(at('2026-03-09Z', call('twice')), $second, 'which is found');
is(at('2026-03-09Z', "SET kavach.request_retention = '90d'; " . call('twice')), $second, 'also where both are remembered');
is(at('2026-01-06Z', 'RESET kavach.request_retention; ' . call('twice')), $second, 'and where it is yet to come');
isnt(at('2026-03-09Z', 'BEGIN; ' . call('turn')), $id, 'what is a month back, and longer than is asked for, is forgotten');
$app->query('ROLLBACK');

# What the transaction has written itself, and what of it is no more.
is(at('2026-03-10Z', 'BEGIN; ' . call('own') . ' \gset
' . "SELECT audit_id = :'audit_id' FROM kavach_authorize('agt_a', 'run', 'x', 10, request_id => 'own')"), 't', 'a transaction finds its own call');
like(at('2026-03-10Z', 'SET client_min_messages = warning; ' . settle('own')), qr/^WARNING:.*\n[0-9a-f-]{36}$/, 'and knows it as its own');
is($app->query('SAVEPOINT s; ' . call('undone') . ' \gset
' . "ROLLBACK TO s; SELECT audit_id = :'audit_id' FROM kavach_authorize('agt_a', 'run', 'x', 10, request_id => 'undone')"), 'f', 'but none that it has undone');
$app->query('SET client_min_messages = error; ROLLBACK');
like(at('2026-03-10Z', call('others')), $uuid, 'a call');
unlike(at('2026-03-10Z', 'SET client_min_messages = warning; ' . settle('others')), qr/WARNING/, 'of another transaction is not its own');
$app->query('SET client_min_messages = error');

# ---- what it locks ----

my $keyed = settle('locks');
is(at('2026-03-10Z', call('locks')) =~ $uuid, 1, 'a call');
my $count = partitions('2026-03-10Z', $keyed);
is($count, 2, 'a settlement locks its month and the next, which is there');
is(partitions('2026-03-02Z', call('none')), 3, 'in the first days of a month, also the one before');
change(q{SELECT kavach_create_months('2020-01-01', '2024-12-01')});
is(partitions('2026-03-10Z', $keyed), $count, 'with five years more no more');
is(partitions('2026-03-10Z', "SELECT * FROM kavach_record_usage('agt_a', 4, '$id')"), 3, 'of a month before, also that');

# ---- partitions of other sorts ----

my @columns = split /\n/, $node->safe_psql('postgres', q{SELECT format('%I %s', attname, format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END) FROM pg_attribute WHERE attrelid = 'kavach.audit_log'::regclass AND attnum > 0 ORDER BY attnum DESC});
my $reversed = join ', ', map { "gone_$_ int, $columns[$_]" } 0 .. $#columns;
my $dropped = join ', ', map { "DROP COLUMN gone_$_" } 0 .. $#columns;
my @indexes = (
	'ALTER TABLE ~ ADD PRIMARY KEY (id)',
	'CREATE UNIQUE INDEX ~_s ON ~ (settles) WHERE settles IS NOT NULL',
	q{CREATE UNIQUE INDEX ~_r ON ~ (request_id, agent_id, kind) WHERE request_id IS NOT NULL AND result = 'allowed'});
my $checks = q{ALTER TABLE ~ ADD CONSTRAINT audit_log_kind_check CHECK (kind = ANY (ARRAY['authorize', 'usage', 'adjustment'])), ADD CONSTRAINT audit_log_result_check CHECK (result = ANY (ARRAY['allowed', 'denied', 'rate_limited']))};
sub attach { my ($table, $from, $to, @more) = @_; return join('; ', map { s/~/$table/gr } $checks, @more, "ALTER TABLE kavach.audit_log ATTACH PARTITION $table FOR VALUES FROM ('$from') TO ('$to')") }

# Puts in a row by hand, and returns its id.
sub put
{
	my ($ts, $request, %columns) = @_;
	my ($result) = ($columns{result} // 'allowed');
	return $node->safe_psql('postgres', qq{INSERT INTO kavach.audit_log (id, ts, kind, agent_id, user_id, action, resource, result, code, tokens_requested, tokens_cost, request_id)
		SELECT (lpad(to_hex(floor(extract(epoch FROM t) * 1000)::bigint), 12, '0') || '70008' || lpad('', 15, '0'))::uuid, t, 'authorize', 'agt_a', 'ann', 'run', 'x', '$result', 'c', 10, 10, '$request' FROM CAST('$ts' AS timestamptz) t RETURNING id});
}

# Found, by request, id and settlement.
sub ok_found
{
	my ($way, $name, $ts, $request) = @_;
	my $found = $node->safe_psql('postgres', "SELECT id FROM kavach.audit_log WHERE request_id = '$request' AND kind = 'authorize'") || at($ts, call($request));
	like($found, $uuid, "$name: a call");
	is(at($ts, call($request)), $found, "$name: found by its request");
	my $settlement = at($ts, "SELECT usage_id FROM kavach_record_usage('agt_a', 4, '$found')");
	is(at($ts, settle($request)), $settlement, "$name: and settled");
	is(at($ts, "SELECT usage_id FROM kavach_record_usage('agt_a', 4, '$found')"), $settlement, "$name: once");
	is($node->safe_psql('postgres', "SELECT settles = '$found' AND action = 'run' AND resource = 'x' AND tokens_released = 10 AND user_id = 'ann' FROM kavach.audit_log WHERE id = '$settlement'"), 't', "$name: with what it has read");
	ok_way($way, $name, $ts, call($request));
	ok_way($way, "$name, a settlement", $ts, settle($request));
	return;
}

change("CREATE TABLE reversed ($reversed); ALTER TABLE reversed ALTER batch SET DEFAULT 0, $dropped; " . attach('reversed', '2019-01-01Z', '2019-02-01Z', @indexes));
ok_found('straight', 'columns of another order', '2019-01-10Z', 'reversed');

change(join '; ', map { "CREATE TABLE half_$_->[0] (LIKE kavach.audit_log INCLUDING DEFAULTS); " . attach("half_$_->[0]", $_->[1], $_->[2], @indexes) }
	[ 1, '2019-03-01Z', '2019-03-10 12:00Z' ], [ 2, '2019-03-10 12:00Z', '2019-04-01Z' ]);
ok_found('straight', 'half a month', '2019-03-10Z', 'half');
is(at('2019-03-11Z', call('half')), $node->safe_psql('postgres', "SELECT id FROM half_1 WHERE request_id = 'half' AND kind = 'authorize'"), 'from the other half');
my @both = map { put($_, 'both') } '2019-03-05Z', '2019-03-15Z';
is(at('2019-03-20Z', call('both')), $both[1], 'of a row in each half, the later');

change('CREATE TABLE rest (LIKE kavach.audit_log INCLUDING DEFAULTS); ' . join('; ', map { s/~/rest/gr } $checks, @indexes) . '; ALTER TABLE kavach.audit_log ATTACH PARTITION rest DEFAULT');
my $resting = put('2018-01-01 12:00Z', 'resting');
is(at('2018-01-05Z', call('resting')), $resting, 'a row in the default partition');
ok_way('straight', 'the default partition', '2018-01-05Z', call('resting'));
my @newer = map { put($_, 'newer') } '2026-03-05Z', '2090-01-01Z';
is(at('2026-03-10Z', call('newer')), $newer[1], 'of a row in a month and one there, the later');
@newer = map { put($_, 'older') } '2018-03-05Z', '2026-03-06Z';
is(at('2018-03-06Z', call('older')), $newer[1], 'the other way round, too');
change('ALTER TABLE kavach.audit_log DETACH PARTITION rest');

# ---- indexes that are of no use ----

my $month = 'kavach.audit_log_2026_02';
my $in = '2026-02-10Z';
ok_found('straight', 'all indexes', $in, 'indexes');
change('DROP INDEX kavach.audit_log_2026_02_request_id_idx');
ok_found('by statement', 'without the one on request_id', $in, 'indexes');
ok_way('straight', 'next month', '2026-03-10Z', $keyed);
foreach my $useless (
	[ 'another order', q{(request_id text_pattern_ops, agent_id, kind) WHERE request_id IS NOT NULL AND result = 'allowed'} ],
	[ 'another collation', q{(request_id COLLATE "C", agent_id, kind) WHERE request_id IS NOT NULL AND result = 'allowed'} ],
	[ 'fewer rows', q{(request_id, agent_id, kind) WHERE request_id IS NOT NULL AND result = 'allowed' AND kind = 'usage'} ],
	[ 'an expression', q{(lower(request_id), agent_id, kind) WHERE request_id IS NOT NULL AND result = 'allowed'} ],
	[ 'a column more', q{(request_id, agent_id, kind, ts) WHERE request_id IS NOT NULL AND result = 'allowed'} ],
	[ 'other columns', q{(kind, request_id, agent_id) WHERE request_id IS NOT NULL AND result = 'allowed'} ])
{
	change("CREATE UNIQUE INDEX useless ON $month $useless->[1]");
	ok_found('by statement', $useless->[0], $in, 'indexes');
	change('DROP INDEX kavach.useless');
}
my $old = "CREATE UNIQUE INDEX old ON $month (agent_id, kind, request_id) WHERE request_id IS NOT NULL AND result = 'allowed'";
change($old);
ok_found('straight', 'an index as of 0.1.0', $in, 'indexes');
my $unsettled = at($in, call('unsettled'));
is(at($in, call('unsettled')), $unsettled, 'in which a call is found by its kind');
like(my $settlement = at($in, settle('unsettled')), $uuid, 'and settled');
is($node->safe_psql('postgres', "SELECT settles FROM kavach.audit_log WHERE id = '$settlement'"), $unsettled, 'by its request');
change("CREATE UNIQUE INDEX useless ON $month (request_id, agent_id, kind) WHERE request_id IS NOT NULL AND result = 'allowed'");
ok_found('straight', 'beside one as of now', $in, 'unsettled');
change('DROP INDEX kavach.old');
ok_found('straight', 'and without it', $in, 'unsettled');
change('DROP INDEX kavach.useless');
change("CREATE INDEX useless ON $month (request_id, agent_id, kind)");
ok_found('by statement', 'one that is not unique', $in, 'indexes');
change('DROP INDEX kavach.useless');

# One that is being built is used as soon as it is there, and not before.
my $other = Session->new($node);
$other->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
my $builder = Session->new($node);
$builder->send("CREATE UNIQUE INDEX CONCURRENTLY rebuilt ON $month (request_id, agent_id, kind) INCLUDE (ts) WHERE request_id IS NOT NULL AND result = 'allowed'");
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for old snapshots'}) or die;
is($node->safe_psql('postgres', q{SELECT indisready, indisvalid FROM pg_index WHERE indexrelid = 'kavach.rebuilt'::regclass}), 't|f', 'an index is being built');
is(at($in, call('meanwhile')), at($in, call('meanwhile')), 'calls go on');
ok_way('by statement', 'an index that is being built', $in, call('meanwhile'));
$other->query('COMMIT');
is($builder->answer, '', 'it is there');
$builder->quit;
ok_found('straight', 'an index that has been built', $in, 'meanwhile');
change(q{UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'kavach.rebuilt'::regclass});
ok_found('by statement', 'an index that is invalid', $in, 'meanwhile');
change(q{UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'kavach.rebuilt'::regclass});
change("REINDEX TABLE CONCURRENTLY $month");
ok_found('straight', 'indexes that have been rebuilt', $in, 'meanwhile');
change("CREATE UNIQUE INDEX whole ON $month (request_id, agent_id, kind, result)");
change("DROP INDEX kavach.whole, kavach.rebuilt; ALTER TABLE $month ADD CONSTRAINT deferred UNIQUE (request_id, agent_id, kind) DEFERRABLE");
ok_found('by statement', 'a constraint that is checked later', $in, 'meanwhile');
change("ALTER TABLE $month DROP CONSTRAINT deferred; ALTER TABLE $month ADD CONSTRAINT whole UNIQUE (request_id, agent_id, kind)");
ok_found('straight', 'an index of all rows', $in, 'meanwhile');
put('2026-02-05Z', 'refused', result => 'denied');
change("ALTER TABLE $month DROP CONSTRAINT whole; CREATE UNIQUE INDEX whole ON $month (request_id, agent_id, kind)");
is(at($in, 'BEGIN; ' . call('refused') =~ s/audit_id/code/r), 'ERROR:  40001', 'in which what was refused is no answer');
$app->query('ROLLBACK');

change("ALTER TABLE $month DROP CONSTRAINT audit_log_2026_02_pkey");
my $authorized = at($in, call('meanwhile'));
my $by_id = "SELECT usage_id FROM kavach_record_usage('agt_a', 4, '$authorized')";
is(at($in, $by_id), at($in, settle('meanwhile')), 'without a primary key');
ok_way('by statement', 'an id without a primary key', $in, $by_id);
ok_way('straight', 'but its request', $in, call('meanwhile'));
change("ALTER TABLE $month ADD PRIMARY KEY (id)");

# ---- a transaction that has more requests than it keeps locks of ----

# The unique index of one month knows nothing of another's rows.
$other->quit;
$other = Session->new($node);
$other->query(q{SET kavach.clock = '2026-05-31 23:50Z'; BEGIN});
my $last = $other->query(q{SELECT max(audit_id::text) FROM generate_series(1, 150) n, kavach_authorize('agt_a', 'run', 'x', 10, request_id => 'many' || n)});
my $many = $node->safe_psql('postgres', q{SELECT count(*) FROM pg_locks WHERE locktype = 'userlock' AND mode = 'ExclusiveLock'});
cmp_ok($many, '<', 150, 'a transaction of many requests does not keep all of their locks');
$app->query(q{SET kavach.clock = '2026-06-01 00:10Z'});
$app->send(call('many150'));
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid = } . $app->pid) or die;
$other->query('COMMIT');
is($app->answer, $last, 'a repetition in the next month waits for it all the same');
like($app->query(call('after')), $uuid, 'and then calls go on');

# ---- the executor has something else to do ----

change('SET kavach.allow_alter = on; ALTER TABLE kavach.audit_log ENABLE ROW LEVEL SECURITY');
ok_way('by statement', 'row security', '2026-03-10Z', $keyed);
is(at('2026-03-10Z', call('locks')), $node->safe_psql('postgres', q{SELECT id FROM kavach.audit_log WHERE request_id = 'locks' AND kind = 'authorize'}), 'which the owner is free of');
change('SET kavach.allow_alter = on; ALTER TABLE kavach.audit_log DISABLE ROW LEVEL SECURITY');
ok_way('straight', 'no row security', '2026-03-10Z', $keyed);

$_->quit foreach $app, $other;
$node->stop;
done_testing();
