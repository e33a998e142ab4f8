# Wire.pm: a client that speaks the protocol itself, for what no driver does by intention: going away
# without a word, in the middle of a message, or while an answer is under way.
#
#   my $client = Wire->new($node);
#   is($client->query('SELECT 1'), '1');
#   $client->send(Wire::query_message('COMMIT'))->close;
package Wire;
use strict;
use warnings;
use IO::Socket::UNIX;
use PostgreSQL::Test::Utils;

sub new
{
	my ($class, $node, %settings) = @_;
	my $self = bless {}, $class;
	$self->{socket} = IO::Socket::UNIX->new(Peer => $node->host . '/.s.PGSQL.' . $node->port) or die "connect: $!";
	my $startup = pack 'N (Z*)*', 196608, user => scalar getpwuid($<), database => 'postgres', %settings, '';
	$self->send(pack('N', 4 + length $startup) . $startup);
	$self->until_ready;
	$self->{pid} = $self->query('SELECT pg_backend_pid()');
	return $self;
}

# ---- messages ----

sub message
{
	my ($type, $body) = @_;
	return $type . pack('N', 4 + length $body) . $body;
}

sub query_message { return message('Q', pack 'Z*', shift) }

# Unnamed statement and portal, without Sync.
sub execute_messages
{
	my ($sql) = @_;
	return message('P', pack 'Z* Z* n', '', $sql, 0) . message('B', pack 'Z* Z* n n n', '', '', 0, 0, 0) . message('E', pack 'Z* N', '', 0);
}

sub sync_message { return message('S', '') }

# ---- talking ----

sub send
{
	my ($self, $bytes) = @_;
	local $SIG{PIPE} = 'IGNORE';
	$self->{socket}->print($bytes);
	$self->{socket}->flush;
	return $self;
}

sub receive
{
	my ($self) = @_;
	my ($type, $length) = unpack 'a N', $self->bytes(5);
	return ($type, $self->bytes($length - 4));
}

sub bytes
{
	my ($self, $wanted) = @_;
	my $bytes = '';
	local $SIG{ALRM} = sub { die "no answer from the server\n" };
	alarm $PostgreSQL::Test::Utils::timeout_default;
	while ((my $missing = $wanted - length $bytes) > 0)
	{
		$self->{socket}->read($bytes, $missing, length $bytes) or die "the server closed the connection\n";
	}
	alarm 0;
	return $bytes;
}

# Reads on to a message of that type. Returns columns joined by |, rows and SQLSTATEs by line breaks.
sub until_message
{
	my ($self, $wanted) = @_;
	my @lines;
	for (;;)
	{
		my ($type, $body) = $self->receive;
		if ($type eq 'D')
		{
			my ($count, @columns) = unpack 'n (N/a)*', $body;
			push @lines, join '|', @columns;
		}
		push @lines, $body =~ /\0C([^\0]*)/ if $type eq 'E';
		return join "\n", @lines if $type eq $wanted;
	}
}

sub until_ready { my ($self) = @_; return $self->until_message('Z') }

sub query
{
	my ($self, $sql) = @_;
	return $self->send(query_message($sql))->until_ready;
}

# The end of the connection, without a farewell.
sub close
{
	my ($self) = @_;
	$self->{socket}->close;
	return;
}

1;
