# rounds.pl: a database's worker: it comes with the first call, closes what is ready, and goes when nothing is open; what
# a crash, a copy or its own end leaves open is closed by the next. Its interval is an hour, as wake_worker() is its clock.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('rounds');
$node->init(allows_streaming => 'logical');
$node->append_conf('postgresql.conf', qq{
shared_preload_libraries = 'kavach'
kavach.clock = '2026-03-10 12:00:00+00'
kavach.batch_interval = '1h'
restart_after_crash = on
lock_timeout = ${PostgreSQL::Test::Utils::timeout_default}s});    # rather fail than hang
$node->start;
my $db = 'app';
my $worker = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'kavach worker' AND datname = current_database()};
my $call = q{SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 1)};

sub sql { my ($sql) = @_; return $node->safe_psql($db, $sql) }
sub ok_when { my ($sql, $name) = @_; ok($node->poll_query_until($db, $sql), $name); return }

# The worker does all there is to do, once more and once more, until something holds.
sub when_awake { my ($condition, $name) = @_; ok_when("SELECT $condition FROM kavach.wake_worker()", $name); return }
my $closed = 'NOT EXISTS (SELECT FROM kavach.batch_status)';
my $exact = q{SELECT (SELECT sum(tokens_cost) FROM kavach.usage_daily) = sum(tokens_cost), (SELECT sum(rows) FROM kavach.batch) = count(*) FROM kavach.audit_log};

sub create
{
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	sql(q{CREATE EXTENSION kavach; SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
		SELECT kavach_create_months('2026-03-01', '2026-03-01')});
	return;
}

# ---- from the first call to rest ----

create();
is(sql($worker), '', 'there is no worker before the first call');
is(sql('SELECT pid, closed_at FROM kavach.worker_status'), '|', 'nor has there been one');
is(sql($call), 'allowed', 'a call');
ok_when("SELECT count(*) = 1 FROM ($worker) w", 'starts one');
is(sql("SELECT application_name, state FROM pg_stat_activity WHERE pid IN ($worker)"), 'kavach worker|idle', 'that goes by its name');
when_awake($closed, 'which closes the batch');
is(sql($exact), 't|t', 'whole');
is(sql("SELECT pid IN ($worker), closed_at IS NOT NULL, failing_since, sqlstate, refused_at FROM kavach.worker_status"), 't|t|||', 'as it tells');
when_awake("to_regclass('kavach.audit_log_2026_04') IS NOT NULL", 'and makes the next month, which no call has asked for');

# A session that stays idle in a transaction keeps its own batch open, and no other.
my ($idle, $other) = map { Session->new($node, $db) } 1, 2;
$idle->query("SET application_name = 'idle one'; BEGIN; $call");
is(sql("SELECT rows, first_ts, pid, role, application_name, since IS NOT NULL FROM kavach.batch_status WHERE pid = " . $idle->pid), '0||' . $idle->pid . '|postgres|idle one|t', 'who keeps a batch open');
my $held = sql('SELECT batch FROM kavach.batch_status WHERE pid = ' . $idle->pid);
$other->query("BEGIN; $call; COMMIT");
for (1 .. 3)
{
	$other->query($call);
	ok_when("SELECT (SELECT array_agg(batch) FROM kavach.batch_status) = '{$held}' FROM kavach.wake_worker()", 'what others write is closed meanwhile');
}
is(sql('SELECT open FROM kavach.tail'), "{$held}", 'the tail is that batch');
is(sql("SELECT backend_xmin, backend_xid, xact_start FROM pg_stat_activity WHERE pid IN ($worker)"), '||', 'and the worker holds nothing meanwhile');
is($idle->query('COMMIT'), '', 'until he commits');
when_awake($closed, 'then that is closed as well');
is(sql($exact), 't|t', 'whole');
$_->quit for $idle, $other;

# Rows put in by hand are no different.
sql(q{INSERT INTO kavach.audit_log (id, ts, kind, agent_id, user_id, result, code, tokens_cost)
	VALUES ('019cd7c8-2000-7000-8000-000000000001', '2026-03-10 12:00Z', 'adjustment', 'agt_a', 'ann', 'allowed', 'adjusted', 5)});
is(sql('SELECT rows FROM kavach.batch_status'), '1', 'a row put in by hand is in a batch');
when_awake($closed, 'that is closed');
is(sql($exact), 't|t', 'whole');

# ---- who wants the database for himself ----

sql($call);
is(sql('SELECT rows FROM kavach.batch_status'), '1', 'a batch is open');
$node->safe_psql('postgres', "CREATE DATABASE copy TEMPLATE $db");
pass('a database is copied with its worker there, which leaves');
sql($call);
$db = 'copy';
is(sql('SELECT rows FROM kavach.batch_status'), '1', 'the copy has the open batch');
is(sql($worker), '', 'and no worker');
is(sql('SELECT pid FROM kavach.worker_status'), '', 'of its own');
is(sql($call), 'allowed', 'until its first call');
when_awake($closed, 'whose worker closes both');
is(sql($exact), 't|t', 'whole');
$db = 'app';
when_awake($closed, 'and so does the original\'s');
is(sql($exact), 't|t', 'whole');
ok_when("SELECT count(*) = 1 FROM ($worker) w", 'its worker is there');
$node->safe_psql('postgres', $_) for 'ALTER DATABASE copy RENAME TO renamed', 'ALTER DATABASE renamed RENAME TO copy', 'DROP DATABASE copy';
pass('a database is renamed and dropped with its worker there');

# With no one to ask it, it leaves by itself.
sub interval
{
	my ($interval) = @_;
	$node->adjust_conf('postgresql.conf', 'kavach.batch_interval', "'$interval'");
	$node->reload;
	return;
}
sql($call);
interval('10ms');
ok_when("SELECT count(*) = 0 FROM ($worker) w", 'the worker leaves a database at rest');
is(sql("SELECT $closed"), 't', 'where nothing is open');
is(sql('SELECT pid FROM kavach.worker_status'), '', 'and says so');
for my $n (1 .. 20)
{
	sql($call);
	ok_when("SELECT $closed", "call $n: closed by it, or by the next");
}
is(sql($exact), 't|t', 'whole');
interval('1h');

# ---- the worker's end ----

sql($call);
ok_when("SELECT count(*) = 1 FROM ($worker) w", 'a worker');
when_awake($closed, 'that has closed what there was');
sql($call);
sql("SELECT pg_terminate_backend(pid) FROM ($worker) w");
ok_when("SELECT count(*) = 0 FROM ($worker) w", 'is terminated');
is(sql('SELECT pid FROM kavach.worker_status'), '', 'and is gone');
is(sql("SELECT NOT $closed"), 't', 'a batch is left open');
is(sql($call), 'allowed', 'until the next call');
when_awake($closed, 'brings another');

ok_when("SELECT count(*) = 1 FROM ($worker) w", 'a worker');
sql($call);
kill 'KILL', sql($worker);
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'kavach worker'"), 'a worker is killed, and the server with it');
is(sql("SELECT NOT $closed"), 't', 'a batch is left open');
sql($call);
when_awake($closed, 'and closed by the first worker after the crash');
is(sql($exact), 't|t', 'whole');

$idle = Session->new($node, $db);
$idle->query("BEGIN; $call");
sql($call);
$node->stop('immediate');
$idle->quit;
$node->start;
sql($call);
when_awake($closed, 'as after any crash');
is(sql($exact), 't|t', 'whole');

# ---- errors ----

sql(q{CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no, %', clock_timestamp(); END $$;
	SET kavach.allow_alter = on; CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON kavach.usage_daily FOR EACH ROW EXECUTE FUNCTION fail()});
my $log = -s $node->logfile;
sql($call);
when_awake('(SELECT sqlstate FROM kavach.worker_status)' . " = 'P0001'", 'what keeps batches from being closed');
my $clock = sql('SELECT clock_timestamp()');
for (1 .. 3)
{
	sql('SELECT kavach.wake_worker()');
	sql($call);
}
is(sql("SELECT failing_since < '$clock', NOT $closed, pid IN ($worker) FROM kavach.worker_status"), 't|t|t', 'fails, for the same worker');
sql('SET kavach.allow_alter = on; DROP TRIGGER fail ON kavach.usage_daily');
when_awake($closed, 'until it is gone');
is(sql('SELECT failing_since, sqlstate FROM kavach.worker_status'), '|', 'then nothing fails');
is(sql($exact), 't|t', 'whole');
my $logged = slurp_file($node->logfile, $log);
my @errors = $logged =~ /ERROR:  no, /g;
is(@errors, 1, 'it was logged once');
like($logged, qr/ERROR:  no, .*CONTEXT: .*closing batches of the ledger, in the kavach worker of database \d+/s, 'with what it was about');
like($logged, qr/LOG:  closing batches of the ledger works again/, 'and that it works again');

# What the owner of a table can bring in is not left for the commit, where it would have the rights of the worker.
sql(q{SET kavach.allow_alter = on; CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON kavach.usage_daily DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()});
sql($call);
when_awake('(SELECT sqlstate FROM kavach.worker_status)' . " = '42501'", 'a deferred trigger is refused');
sql('SET kavach.allow_alter = on; DROP TRIGGER late ON kavach.usage_daily');
when_awake($closed, 'until it is gone');

# Who has locked what it needs is waited for elsewhere.
my $locker = Session->new($node, $db);
$locker->query('BEGIN; SELECT kavach.close_batches()');
is($locker->query($call), 'allowed', 'who closes batches himself, and goes on');
sql($call);
sql('SELECT kavach.wake_worker()') for 1 .. 3;
is(sql("SELECT failing_since FROM kavach.worker_status"), '', 'is no error');
$locker->query('ROLLBACK');
when_awake($closed, 'all is closed after he has rolled back');
is(sql($exact), 't|t', 'whole');
$locker->quit;

# ---- hours of agents that are read no longer ----

sql(q{INSERT INTO kavach.usage_scope SELECT 'agent', 'agt_' || n, p, '2020-01-01Z', 1, 1 FROM generate_series(1, 2500) n, unnest('{hour,day}'::text[]) p;
	INSERT INTO kavach.usage_scope SELECT 'agent', 'agt_' || n, 'hour', now() - interval '2 days', 1, 1 FROM generate_series(1, 2500) n;
	INSERT INTO kavach.usage_scope VALUES ('user', 'agt_1', 'hour', '2020-01-01Z', 1, 1)});
$node->restart;
sql($call);
my $hours = q{SELECT count(*) FROM kavach.usage_scope WHERE scope = 'agent' AND period = 'hour' AND start = '2020-01-01Z'};
ok_when("SELECT ($hours) = 0", 'old hours of agents go');
is(sql(q{SELECT count(*) FROM kavach.usage_scope WHERE scope = 'agent' AND period = 'hour' AND start > now() - interval '3 days'}), '2500', 'newer ones stay');
is(sql(q{SELECT count(*) FROM kavach.usage_scope WHERE start = '2020-01-01Z'}), '2501', 'and so do their days, and hours of others');

# ---- a subscriber ----

my $subscriber = PostgreSQL::Test::Cluster->new('subscriber');
$subscriber->init;
$subscriber->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\nkavach.batch_interval = '10ms'");
$subscriber->start;
$subscriber->safe_psql('postgres', q{CREATE EXTENSION kavach; SELECT kavach_create_months('2026-03-01', '2026-04-30')});
my $columns = sql(q{SELECT string_agg(attname, ', ') FROM pg_attribute WHERE attrelid = 'kavach.audit_log'::regclass AND attnum > 0 AND attname <> 'batch'});
sql("CREATE PUBLICATION rows FOR TABLE kavach.audit_log ($columns) WITH (publish_via_partition_root = true)");
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION rows CONNECTION '" . $node->connstr . " dbname=$db' PUBLICATION rows");
$subscriber->wait_for_subscription_sync($node, 'rows');
sql($call) for 1 .. 2;
$node->wait_for_catchup('rows');
ok($subscriber->poll_query_until('postgres', "SELECT $closed"), 'rows that come by replication are closed by the subscriber\'s worker');
is($subscriber->safe_psql('postgres', $exact), 't|t', 'whole');
is($subscriber->safe_psql('postgres', 'SELECT sum(tokens_cost) FROM kavach.usage_monthly'), sql('SELECT sum(tokens_cost) FROM kavach.audit_log'), 'and all of them');
$subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION rows DISABLE; ALTER SUBSCRIPTION rows SET (slot_name = NONE); DROP SUBSCRIPTION rows');
$subscriber->stop;
sql(q{DROP PUBLICATION rows; SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active});

# ---- no room ----

$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
$node->restart;
$log = -s $node->logfile;
is(sql(join '; ', ($call) x 3), "allowed\nallowed\nallowed", 'calls go on without a worker') for 1 .. 2;
is(sql('SELECT pid, refused_at IS NOT NULL FROM kavach.worker_status'), '|t', 'there is none');
@errors = slurp_file($node->logfile, $log) =~ /LOG:  could not start the kavach worker.*?HINT:  Raise max_worker_processes/sg;
is(@errors, 1, 'the log says once what to raise');
is(sql('SELECT kavach.wake_worker()'), 'f', 'and asking for one is no error');
is(sql('SELECT sum(rows) = (SELECT kavach.close_batches()) AND sum(rows) >= 6 FROM kavach.batch_status'), 't', 'batches are closed by hand');
is(sql($exact), 't|t', 'whole');
$node->adjust_conf('postgresql.conf', 'max_worker_processes', '8');
$node->restart;

# ---- with the extension ----

sql($call);
ok_when("SELECT count(*) = 1 FROM ($worker) w", 'a worker');
my $pid = sql($worker);
sql('SET kavach.allow_drop = on; DROP EXTENSION kavach CASCADE');
interval('10ms');
ok_when("SELECT count(*) = 0 FROM ($worker) w", 'ends with the extension');
sql(q{CREATE EXTENSION kavach; SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]')});
sql($call);
ok_when("SELECT $closed", 'and comes with another');
is(sql($exact), 't|t', 'whole');
$node->stop;
done_testing();
