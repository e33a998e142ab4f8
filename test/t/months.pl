# months.pl: months of the ledger that kavach has not made, or that somebody has archived, are read, counted and searched
# like others; only what a restore leaves in its middle is waited for.  And kavach_create_months.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX qw(mkfifo);
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('months');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\nmax_prepared_transactions = 1");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]')});
my %has = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', 'SELECT name FROM pg_available_extensions');
my $app = Session->new($node);

sub change { my ($sql) = @_; return $node->safe_psql('postgres', "SET kavach.allow_drop = on; $sql") }

# What loads, in a month: the answer or the SQLSTATE.
sub load
{
	my ($month) = @_;
	change('SELECT kavach_reload_counters()');
	return $app->query("SET kavach.clock = '$month-10Z'; SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 1)");
}

sub why
{
	my ($month) = @_;
	my (undef, undef, $err) = $node->psql('postgres', "SET kavach.clock = '$month-10Z'; SELECT kavach_reload_counters(); SELECT kavach_authorize('agt_a', 'run', 'x', 1)");
	return $err;
}

# ---- partitions of other sorts ----

my $like = '(LIKE kavach.audit_log INCLUDING DEFAULTS INCLUDING CONSTRAINTS)';
sub attach { my ($table, $year) = @_; return "ALTER TABLE kavach.audit_log ATTACH PARTITION $table FOR VALUES FROM ('$year-01-01Z') TO ('$year-12-31Z')" }

# Rows go in, are found, and are counted.
sub odd
{
	my ($name, $year, $ddl) = @_;
	change($ddl);
	$app->query("SET kavach.clock = '$year-05-10Z'");
	my $call = q{SELECT audit_id FROM kavach_authorize('agt_a', 'run', 'x', 5, request_id => 'r-YEAR')} =~ s/YEAR/$year/r;
	my $id = $app->query($call);
	like($id, qr/^[0-9a-f-]{36}$/, "$name: a call");
	is($node->safe_psql('postgres', "SELECT count(*) FROM kavach.audit_log WHERE id = '$id'"), '1', "$name: its row");
	is($app->query($call), $id, "$name: a retry");
	is($app->query(qq{SELECT code, tokens_charged FROM kavach_record_usage('agt_a', 3, '$id')}), 'recorded|-2', "$name: a settlement");
	is($app->query(qq{SELECT code, tokens_charged FROM kavach_record_usage('agt_a', 3, '$id')}), 'recorded|-2', "$name: and again");
	change('SELECT kavach_reload_counters()');
	is($node->safe_psql('postgres', "SET kavach.clock = '$year-05-10Z'; SELECT tokens, calls FROM kavach.current_usage('agent', 'agt_a', 'month', true)"), '3|1', "$name: usage");
	return;
}
odd('a year in parts', 2028, qq{
	CREATE TABLE kavach.y2028 $like PARTITION BY LIST (kind);
	CREATE TABLE kavach.y2028_rest PARTITION OF kavach.y2028 DEFAULT;
	} . attach('kavach.y2028', 2028));
odd('a table of another access method', 2029, qq{
	CREATE ACCESS METHOD heap_too TYPE TABLE HANDLER heap_tableam_handler;
	CREATE TABLE kavach.y2029 $like USING heap_too;
	} . attach('kavach.y2029', 2029));
odd('a table without indexes', 2030, "CREATE TABLE kavach.y2030 $like;" . attach('kavach.y2030', 2030));
odd('a default partition', 2032, 'CREATE TABLE kavach.rest PARTITION OF kavach.audit_log DEFAULT');
is($node->safe_psql('postgres', 'SELECT count(*) FROM kavach.rest'), '0', 'nothing of it is in there, as it has a month of its own');
change('DROP TABLE kavach.rest');
SKIP:
{
	skip 'there is no postgres_fdw', 6 unless $has{postgres_fdw};
	my ($host, $port) = ($node->host, $node->port);
	odd('a foreign table', 2031, qq{
		CREATE EXTENSION postgres_fdw;
		CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname 'postgres');
		CREATE USER MAPPING FOR PUBLIC SERVER other OPTIONS (user 'postgres');
		CREATE TABLE y2031 $like;
		CREATE FOREIGN TABLE kavach.y2031 PARTITION OF kavach.audit_log FOR VALUES FROM ('2031-01-01Z') TO ('2031-12-31Z')
			SERVER other OPTIONS (schema_name 'public', table_name 'y2031')});
}

# ---- a month that is archived in a file ----

SKIP:
{
	skip 'there is no file_fdw', 6 unless $has{file_fdw};
	my $file = $node->basedir . '/2025_01.csv';
	my $call = q{SELECT audit_id FROM kavach_authorize('agt_a', 'run', 'x', 7, request_id => 'r-file')};
	my $id = $node->safe_psql('postgres', "SET kavach.clock = '2025-01-30Z'; $call");
	change(qq{
		CREATE EXTENSION file_fdw;
		CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
		COPY kavach.audit_log_2025_01 TO '$file' (FORMAT csv);
		ALTER TABLE kavach.audit_log DETACH PARTITION kavach.audit_log_2025_01;
		DROP TABLE kavach.audit_log_2025_01;
		CREATE FOREIGN TABLE kavach.archived PARTITION OF kavach.audit_log FOR VALUES FROM ('2025-01-01Z') TO ('2025-02-01Z')
			SERVER files OPTIONS (filename '$file', format 'csv');
		SELECT kavach_reload_counters()});
	is($node->safe_psql('postgres', q{SELECT calls, tokens_cost FROM kavach_billing_report(2025, 1)}), '1|7', 'an archived month has its bill');
	is($node->safe_psql('postgres', "SELECT tokens_cost FROM kavach_query_audit('agt_a', since => '2025-01-01Z', until => '2025-02-01Z')"), '7', 'and its rows');
	is($node->safe_psql('postgres', q{SELECT tokens - (SELECT sum(tokens_cost) FROM kavach.audit_log WHERE agent_id = 'agt_a') FROM kavach.current_usage('agent', 'agt_a', 'total', true)}), '0', 'and is counted');
	$app->query(q{SET kavach.clock = '2025-02-01Z'});
	is($app->query($call), $id, 'a call of it is repeated');
	is($app->query(qq{SELECT code, tokens_charged FROM kavach_record_usage('agt_a', 4, '$id')}), 'recorded|-3', 'and settled');
	is($app->query(qq{SELECT code, tokens_charged FROM kavach_record_usage('agt_a', 4, '$id')}), 'recorded|-3', 'and settled again');
}

# ---- what a restore leaves in its middle ----

change("CREATE TABLE kavach.audit_log_2027_01 $like; ALTER TABLE kavach.audit_log ATTACH PARTITION kavach.audit_log_2027_01 FOR VALUES FROM ('2027-01-01Z') TO ('2027-02-01Z')");
is(load('2027-03'), 'ERROR:  55000', 'a month without any index');
my $err = why('2027-03');
like($err, qr/the ledger is being restored\n.*DETAIL:  Its partition kavach\.audit_log_2027_01 has no index yet\./s, 'is being restored');
my ($advice) = $err =~ /HINT:  Wait for the restore to end; if there is none: (.*)\.$/m;
is($advice, 'ALTER TABLE kavach.audit_log_2027_01 ADD PRIMARY KEY (id)', 'or somebody has made it');
change($advice);
is(load('2027-03'), 'allowed', 'and the advice helps');

is(load('2027-04'), 'allowed', 'a year without any index is nobody\'s business');
my $restore = Session->new($node);
$restore->query("SET application_name = 'pg_restore'");
is(load('2027-04'), 'ERROR:  55000', 'unless there is a pg_restore');
like(why('2027-04'), qr/partition kavach\.y2030 has no index yet\.\n.*HINT:  Wait for pg_restore, or COPY, to end\./, 'that is waited for');
$restore->query('RESET application_name');
is(load('2027-04'), 'allowed', 'until it has ended');

my $fifo = $node->basedir . '/fifo';
mkfifo($fifo, 0600) or die;
$restore->send("COPY kavach.y2030 FROM PROGRAM 'cat $fifo'");
$node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM pg_stat_progress_copy') or die;
is($app->query(q{SET kavach.clock = '2027-06-10Z'; SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 1)}), 'ERROR:  55000', 'or a COPY into the ledger');
open my $writer, '>', $fifo or die;
close $writer;
is($restore->answer, '', 'which ends');
is(load('2027-06'), 'allowed', 'and so does the waiting');
change('CREATE INDEX ON kavach.y2029 (ts); CREATE INDEX ON kavach.y2030 (ts)');
$restore->query("SET application_name = 'pg_restore'");
is(load('2027-07'), 'allowed', 'a table that has an index has its rows');


# ---- months that are made ahead ----

sub made { my ($first, $last) = @_; return $app->query("SELECT kavach_create_months('$first', '$last')") }
sub names
{
	my ($pattern) = @_;
	return $node->safe_psql('postgres', qq{SELECT string_agg(inhrelid::regclass::text, ' ' ORDER BY 1)
		FROM pg_inherits WHERE inhparent = 'kavach.audit_log'::regclass AND inhrelid::regclass::text ~ '$pattern'});
}

$app->query("SET timezone = 'Pacific/Kiritimati'");
is(made('2040-11-30', '2041-02-01'), '4', 'months are made, those of both dates and those between');
is(names('204[01]'), 'kavach.audit_log_2040_11 kavach.audit_log_2040_12 kavach.audit_log_2041_01 kavach.audit_log_2041_02', 'that is these, in UTC');
is(made('2040-10-01', '2041-03-31'), '2', 'only what is missing');
is(made('2040-10-01', '2041-03-31'), '0', 'and once');
is($node->safe_psql('postgres', q{SELECT count(*), count(DISTINCT n) FROM (
	SELECT relid, (SELECT count(*) FROM pg_index WHERE indrelid = relid) + (SELECT count(*) FROM pg_trigger WHERE tgrelid = relid) AS n
	  FROM pg_partition_tree('kavach.audit_log') WHERE relid::regclass::text ~ '2032_05|204[01]_') m}), '7|1', 'with what those have that calls make');
is($app->query("SET kavach.clock = '2041-03-31 23:59:59.999999Z'; SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 1)"), 'allowed', 'calls use them');
is($node->safe_psql('postgres', 'SELECT count(*) FROM kavach.audit_log_2041_03'), '1', 'as their own');
is($app->query("BEGIN; SELECT kavach_create_months('2042-01-01', '2042-01-01'); ROLLBACK"), '1', 'in a transaction');
is(names('2042'), '', 'that can be rolled back');
$restore->query('SET lock_timeout = 1');
$app->query("BEGIN; SELECT kavach_create_months('2042-01-01', '2042-02-28')");
is($restore->query("SELECT kavach_create_months('2042-01-01', '2042-01-01')"), 'ERROR:  55P03', 'others wait for it');
is($restore->query("SET kavach.clock = '2041-03-30Z'; SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 1)"), 'allowed', 'calls in months that are there do not');
like($app->query("PREPARE TRANSACTION 'months'"), qr/0A000/, 'it cannot be prepared');
is(made('2043-01-01', '2062-12-31'), '240', 'many at a time');
is(made('2063-01-01', '2083-01-01'), 'ERROR:  54000', 'but not any number');
is(made('1970-01-01', '1970-01-31') . made('9999-12-01', '9999-12-31'), '11', 'from the first to the last there is');
is(made(@$_), "ERROR:  $_->[2]", "$_->[0] to $_->[1]") for [qw(1969-12-31 1970-01-01 22008)], [qw(9999-12-31 10000-01-01 22008)],
	[qw(-infinity 2026-01-01 22008)], [qw(2026-01-01 infinity 22008)], [qw(2026-02-01 2026-01-31 22023)];
is($app->query("SELECT kavach_create_months(NULL, '2026-01-01')"), 'ERROR:  22004', 'NULL');
is($app->query("SELECT kavach_create_months('2026-01-01', NULL)"), 'ERROR:  22004', 'NULL');
is(made('2030-01-01', '2030-11-30'), '0', 'a year that is one partition needs none');
is(made('2030-12-01', '2030-12-31'), 'ERROR:  42P17', 'a month of which a part is in another cannot be made');
is($app->query("BEGIN READ ONLY; SELECT kavach_create_months('2090-01-01', '2090-01-01')"), 'ERROR:  25006', 'nor any in a transaction that reads');
$app->query('ROLLBACK; CREATE ROLE admin; SELECT kavach_grant_role(\'admin\', \'admin\'); CREATE ROLE app; SELECT kavach_grant_role(\'app\', \'app\'); SET ROLE admin');
is(made('2090-01-01', '2090-01-01'), '1', 'an admin may');
$app->query('SET ROLE app');
is(made('2091-01-01', '2091-01-01'), 'ERROR:  42501', 'an app may not');

my ($watch) = slurp_file("$FindBin::RealBin/../../doc/operations.md") =~ /^(SELECT to_regclass\(.*? AS next_month;)/ms;
$node->safe_psql('postgres', 'CREATE DATABASE watched');
is($node->safe_psql('watched', "CREATE EXTENSION kavach; $watch"), 'f', 'what is to be watched: next month is not there');
is($node->safe_psql('watched', "SELECT kavach_create_months(current_date - 1, current_date + 62) > 0; $watch"), "t\nt", 'and then is');

$restore->quit;
$app->quit;
$node->stop;
done_testing();
